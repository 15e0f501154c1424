//! What somebody has said of findings that no fault of anybody's need be: rows that were written while no master
//! key could be had, a crash, events that found no room. A row of the log says so, up to a leaf: what lies
//! below it is sealed, so that nothing can be put there afterwards to be covered by it.

use super::Verifier;
use super::finding::FindingKind;
use crate::row::LogRow;

/// The event whose rows say so: `value_count` is the leaf.
pub(super) const FINDINGS_ACKNOWLEDGED: &str = "audit_findings_acknowledged";

/// What was said last.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// What is about leaves below this one is known.
    pub until: u64,
    /// The id of the row, who, and why.
    by: Option<(i64, String, String)>,
    /// How many findings that took away.
    pub excused: u64,
}

impl Said {
    /// A row with a MAC. It speaks of leaves before its own; `next` is the number of the next leaf.
    pub fn hear(&mut self, row: &LogRow, next: u64) {
        let until = row.value_count.and_then(|count| u64::try_from(count).ok());
        let own = row.leaf.and_then(|leaf| u64::try_from(leaf).ok()).unwrap_or(next);
        if let Some(until) = until.filter(|until| *until <= own && *until > self.until) {
            self.until = until;
            let reason = row.reason.clone().unwrap_or_default();
            self.by = Some((row.id, row.actor.clone(), reason));
        }
    }
}

impl Verifier {
    /// After all other findings.
    pub(super) fn finish_acknowledged(&mut self) {
        let excused = self.said.excused + self.findings.excuse(self.said.until);
        self.summary.acknowledged = excused;
        if let Some((id, by, reason)) = self.said.by.take()
            && excused > 0
        {
            let until = self.said.until;
            self.findings.push(FindingKind::Acknowledged, Some(until), Some(id), || {
                format!("{excused} findings about the leaves below {until} are known: {by} said why: {reason}")
            });
        }
    }
}
