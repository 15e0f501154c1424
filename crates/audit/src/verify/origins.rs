//! Origins: what the table says of them, the first keys of their logs say, and rows of the log say.

use super::finding::FindingKind;
use super::{Beginning, Expected, Verifier, is_same_time};
use crate::row::LogRow;
use crate::tree::Hash;

/// Events whose rows tell of origins, and of the keys that sign.
const ORIGIN_BEGUN: &str = "audit_origin_begun";
const FORK_ACKNOWLEDGED: &str = "audit_fork_acknowledged";
const STARTED: &str = "audit_started";
/// More rows about origins than any log has.
const MOST_TOLD: usize = 10_000;

/// What rows of the log tell of origins, and of keys.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// When, and the reason that the row gives.
    begun: Vec<(i64, String)>,
    /// When, who, and the reason that the row gives.
    acknowledged: Vec<(i64, String, String)>,
    /// The id of the row, when, and the key that it tells of.
    pub started: Vec<(i64, i64, String)>,
}

impl Told {
    pub fn hear(&mut self, row: &LogRow, is_vouched_for: bool) {
        let Some(reason) = &row.reason else { return };
        match row.event.as_str() {
            ORIGIN_BEGUN if self.begun.len() < MOST_TOLD => {
                self.begun.push((row.at, reason.clone()));
            }
            FORK_ACKNOWLEDGED if is_vouched_for && self.acknowledged.len() < MOST_TOLD => {
                self.acknowledged.push((row.at, row.actor.clone(), reason.clone()));
            }
            STARTED if is_vouched_for && self.started.len() < MOST_TOLD => {
                if let Some(key) = started_key(reason) {
                    self.started.push((row.id, row.at, key.to_owned()));
                }
            }
            _ => {}
        }
    }
}

/// The key of which the reason of a row tells: `clean handover to KEY, vouched for by: mac`.
fn started_key(reason: &str) -> Option<&str> {
    let (_, of) = reason.split_once(" handover to ")?;
    Some(of.split_once(", ")?.0)
}

impl Verifier {
    /// Expects the tree to be what each origin says that it went on from.
    pub(super) fn expect_origins(&mut self) {
        for (index, origin) in self.origins.iter().enumerate() {
            if let (Ok(size), Ok(root)) =
                (u64::try_from(origin.old_size), origin.old_root.as_slice().try_into())
            {
                self.expected.push_back((size, root, Expected::Origin(index)));
            } else {
                self.findings.push(FindingKind::OriginChanged, None, None, || {
                    format!("origin {}: its size or root can't be one", origin.id)
                });
            }
        }
    }

    pub(super) fn settle_origin(
        &mut self,
        index: usize,
        size: u64,
        known: Option<Hash>,
        root: &Hash,
    ) {
        // What is not known is reported for the span in which it was lost.
        if known.is_some_and(|known| known != *root) {
            let id = self.origins[index].id;
            self.findings.push(FindingKind::OriginChanged, Some(size), None, || {
                format!("origin {id}: the rows below leaf {size} are not those that it says it goes on from")
            });
        }
    }

    /// An origin need have no key: it gets its first one with its first checkpoint, and may have been copied
    /// before that, and gone on from. Keys that were there and are not any more are told of by rows.
    pub(super) fn finish_origins(&mut self) {
        // Rows of other leaves may have told of it.
        let are_all_heard = self.beginning == Beginning::First && !self.is_cut;
        for (index, origin) in self.origins.iter().enumerate() {
            let (id, log) = (origin.id, origin.log);
            let size = origin.old_size.max(0).cast_unsigned();
            let mut found = |kind, detail: &str| {
                self.findings.push(kind, Some(size), None, || format!("origin {id}: {detail}"));
            };
            let before = index.checked_sub(1).map(|before| self.origins[before].log);
            if origin.old_log != before {
                let detail = "the log that it says it goes on from is not the one before it";
                found(FindingKind::OriginChanged, detail);
            }
            let from = origin.old_log.map(|old| format!(", goes on from log {old}"));
            let begun = format!(
                "log {log}{} at size {}, root {}: {}",
                from.unwrap_or_default(),
                origin.old_size,
                base16ct::lower::encode_string(&origin.old_root),
                origin.cause
            );
            let is_told =
                |(at, reason): &(i64, String)| is_same_time(*at, origin.at) && *reason == begun;
            if are_all_heard && !self.told.begun.iter().any(is_told) {
                let detail = "no row of event audit_origin_begun tells of it as the table does";
                found(FindingKind::OriginChanged, detail);
            }
            if index == 0 {
                if origin.acknowledgement.is_some() {
                    let detail = "the first one is no fork, but somebody has acknowledged it";
                    found(FindingKind::OriginChanged, detail);
                }
                continue;
            }
            match &origin.acknowledgement {
                None => {
                    let detail = format!(
                        "the log goes on from {size} rows in another place, as log {log}, and nobody has said why"
                    );
                    found(FindingKind::Fork, &detail);
                }
                Some(said) => {
                    // The row names the last log that was acknowledged with it.
                    let later = &self.origins[index..];
                    let is_told = |(at, by, reason): &(i64, String, String)| {
                        is_same_time(*at, said.at)
                            && *by == said.by
                            && later
                                .iter()
                                .any(|one| *reason == format!("{} (log {})", said.reason, one.log))
                    };
                    if are_all_heard && !self.told.acknowledged.iter().any(is_told) {
                        let detail = "no row of event audit_fork_acknowledged tells of its acknowledgement as the table does";
                        found(FindingKind::OriginChanged, detail);
                    }
                }
            }
        }
    }
}
