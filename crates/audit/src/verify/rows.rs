//! Rows: their MACs, their leaf numbers, and the tree that they make.

use std::collections::BTreeMap;

use super::acknowledged::FINDINGS_ACKNOWLEDGED;
use super::finding::FindingKind;
use super::{AuditKeys, Beginning, Sealing, Verifier};
use crate::row::{HalfAMac, LogRow, leaf_hash};

/// Findings that are told once, with their number.
#[derive(Debug, Default)]
pub(super) struct Unlisted {
    keyed: Keyed,
    /// Rows without a MAC: id and leaf of so many, the number of more, and the highest leaf of these.
    without_mac: Vec<(i64, Option<u64>)>,
    more_without_mac: u64,
    more_until: u64,
    /// By key: how many rows, and the first one's id.
    not_checked: BTreeMap<i64, (u64, i64)>,
    not_yet_sealed: u64,
    not_sealed: u64,
    first_not_sealed: Option<i64>,
    /// Rows of event `audit_gap`: leaf and number of events, of so many.
    gaps: Vec<(Option<u64>, u64)>,
    more_gaps: u64,
    /// Sizes, and roots in hex, up to which rows say that the retention dropped rows.
    retired: Vec<(u64, String)>,
}

/// From which id on rows have a MAC. Leaf numbers don't tell, since rows of long transactions are sealed late.
///
/// The transaction that makes the key has it before all others, for as long as it lasts. A row of another one
/// has an id that was dealt before its look-up found no key, or after its look-up found one. So the first
/// row with a MAC that is not of the transaction which came first is the bound, whoever was slow.
#[derive(Debug, Default)]
struct Keyed {
    /// The lowest id of a row whose MAC is right, and its transaction, if it is known.
    first: Option<(i64, Option<u64>)>,
    /// The lowest id of one of another transaction.
    first_of_others: Option<i64>,
}

impl Keyed {
    fn see(&mut self, row: &LogRow) {
        let this = (row.id, row.transaction_id);
        let Some(first) = self.first else {
            self.first = Some(this);
            return;
        };
        let is_of_first = first.1.is_some() && first.1 == this.1;
        if this.0 < first.0 {
            self.first = Some(this);
            if !is_of_first {
                // All others came behind it.
                self.first_of_others = Some(first.0);
            }
        } else if !is_of_first {
            let others = self.first_of_others.get_or_insert(this.0);
            *others = this.0.min(*others);
        }
    }

    fn from(&self) -> Option<i64> {
        match self.first? {
            (id, None) => Some(id),
            (_, Some(_)) => self.first_of_others,
        }
    }
}

/// Events whose rows the verification itself reads.
const AUDIT_GAP: &str = "audit_gap";
const AUDIT_RETIRED: &str = "audit_retired";
/// Rows without a MAC that are remembered: beyond that they count with the others.
const MOST_WITHOUT_MAC: usize = 100_000;
/// More retirements than there are partitions.
const MOST_RETIRED: usize = 10_000;
/// Rows of event `audit_gap` that are remembered.
const MOST_GAPS: usize = 10_000;

impl Verifier {
    /// A row with a leaf number; they come in the order of these.
    pub fn row(&mut self, row: &LogRow, keys: &mut dyn AuditKeys) {
        self.summary.sealed_rows += 1;
        let id = row.id;
        let Some(leaf) = row.leaf.and_then(|leaf| u64::try_from(leaf).ok()) else {
            return self.impossible_row(None, id, "its leaf number is negative");
        };
        let Ok(mac) = self.check_row(row, Some(leaf), keys) else {
            return self.impossible_row(Some(leaf), id, "its MAC is not whole");
        };
        if leaf < self.from {
            // Dropped by the retention but for this row, which lies in a later partition.
            return;
        }
        self.take_place(leaf, id);
        let oldest = self.oldest_uncovered.get_or_insert(i64::MAX);
        *oldest = row.at.min(*oldest);
        if let Some(tree) = self.tree.as_mut()
            && tree.size() == leaf
        {
            tree.append(leaf_hash(&self.buffer, mac));
        }
    }

    /// A row that can't be one of ours: it has no encoding.
    pub fn impossible_row(&mut self, leaf: Option<u64>, id: i64, problem: &str) {
        self.findings.push(FindingKind::RowChanged, leaf, Some(id), || {
            format!("the row can't be one that was sealed: {problem}")
        });
        if let Some(leaf) = leaf.filter(|leaf| *leaf >= self.from) {
            self.take_place(leaf, id);
            self.tree = None;
        }
    }

    /// A row without a leaf number. `is_late`: it is older than sealing takes.
    pub fn unsealed_row(&mut self, row: &LogRow, is_late: bool, keys: &mut dyn AuditKeys) {
        self.summary.unsealed_rows += 1;
        if self.check_row(row, None, keys).is_err() {
            let problem = "its MAC is not whole";
            return self.impossible_row(None, row.id, problem);
        }
        if is_late && self.sealing != Sealing::StandsStill {
            self.unlisted.not_sealed += 1;
            self.unlisted.first_not_sealed.get_or_insert(row.id);
        } else {
            self.unlisted.not_yet_sealed += 1;
        }
    }

    /// The MAC, with the row's encoding in `buffer`. An error if there is half a MAC.
    fn check_row<'r>(
        &mut self,
        row: &'r LogRow,
        leaf: Option<u64>,
        keys: &mut dyn AuditKeys,
    ) -> Result<Option<(i64, &'r [u8; 32])>, HalfAMac> {
        let id = row.id;
        if !self.ids.insert(id) {
            self.findings.push(FindingKind::IdRepeated, leaf, Some(id), || {
                "another row has the same id".into()
            });
        }
        row.encode(&mut self.buffer);
        let mac = row.mac()?;
        let mut is_refuted = false;
        match mac {
            None if self.unlisted.without_mac.len() < MOST_WITHOUT_MAC => {
                self.unlisted.without_mac.push((id, leaf));
            }
            None => {
                self.unlisted.more_without_mac += 1;
                // Without a leaf it is not below any.
                let until = leaf.map_or(u64::MAX, |leaf| leaf + 1);
                self.unlisted.more_until = self.unlisted.more_until.max(until);
            }
            Some((key_id, mac)) => match keys.is_mac_of(key_id, &self.buffer, mac) {
                Some(true) => {
                    self.summary.authentic_rows += 1;
                    self.unlisted.keyed.see(row);
                }
                Some(false) => {
                    self.findings.push(FindingKind::RowChanged, leaf, Some(id), || {
                        "the MAC is not that of the row: its contents were changed, or its id, or its MAC".into()
                    });
                    is_refuted = true;
                }
                None => {
                    let (rows, _) = self.unlisted.not_checked.entry(key_id).or_insert((0, id));
                    *rows += 1;
                }
            },
        }
        // Without a MAC anybody could say that all is well.
        let is_vouched_for = mac.is_some() && !is_refuted;
        if !is_refuted {
            self.told.hear(row, is_vouched_for);
        }
        match row.event.as_str() {
            AUDIT_GAP if self.unlisted.gaps.len() < MOST_GAPS => {
                let events = row.value_count.unwrap_or(0).max(0);
                self.unlisted.gaps.push((leaf, events.unsigned_abs()));
            }
            AUDIT_GAP => self.unlisted.more_gaps += 1,
            FINDINGS_ACKNOWLEDGED if is_vouched_for => self.said.hear(row, self.next),
            AUDIT_RETIRED if is_vouched_for && self.unlisted.retired.len() < MOST_RETIRED => {
                self.unlisted.retired.extend(retired_until(row));
            }
            _ => {}
        }
        Ok(mac)
    }

    /// Whether the leaf is the next one, and if not, what that says.
    fn take_place(&mut self, leaf: u64, id: i64) {
        if leaf < self.next {
            self.findings.push(FindingKind::LeafRepeated, Some(leaf), Some(id), || {
                "another row has the same leaf number".into()
            });
            self.is_span_explained = true;
            self.tree = None;
            return;
        }
        self.settle(self.next);
        let first = self.gap.take().unwrap_or(self.next);
        if first < leaf {
            self.missing(first, leaf - 1);
        }
        if self.next < leaf {
            self.is_span_explained = true;
            self.tree = None;
            self.settle(leaf);
        }
        self.next = leaf + 1;
    }

    /// Leaves that have no row, though later ones have.
    fn missing(&mut self, first: u64, last: u64) {
        self.findings.push(FindingKind::LeafMissing, Some(first), None, || {
            if first == last {
                "the row of this leaf is not there: it was deleted, or its leaf number changed".into()
            } else {
                format!(
                    "the rows of the leaves {first} to {last} are not there: they were deleted, or their leaf numbers changed"
                )
            }
        });
    }

    pub(super) fn finish_rows(&mut self) {
        let findings = &mut self.findings;
        let unlisted = &self.unlisted;
        // Where rows before these are not looked at, they had one: those with ids from before may be of a
        // transaction that ended late.
        let keyed = match self.beginning {
            Beginning::First => unlisted.keyed.from().unwrap_or(i64::MAX),
            Beginning::Asked | Beginning::Retired => self.keyed_before.unwrap_or(i64::MIN),
        };
        let until = self.said.until;
        let is_known = |leaf: &Option<u64>| leaf.is_some_and(|leaf| leaf < until);
        let late: Vec<_> = unlisted.without_mac.iter().filter(|(id, _)| *id > keyed).collect();
        let not_authenticated = (unlisted.without_mac.len() - late.len()) as u64;
        let missing: Vec<_> = late.iter().filter(|(_, leaf)| !is_known(leaf)).collect();
        let more = if unlisted.more_until <= until { 0 } else { unlisted.more_without_mac };
        let count = missing.len() as u64 + more;
        let mut excused = u64::from(missing.len() < late.len() || more < unlisted.more_without_mac);
        let gaps: Vec<_> = unlisted.gaps.iter().filter(|(leaf, _)| !is_known(leaf)).collect();
        excused += u64::from(gaps.len() < unlisted.gaps.len());
        self.said.excused = excused;
        if count > 0 {
            let (id, leaf) = missing.iter().min().map(|one| ***one).unzip();
            findings.push(FindingKind::MacMissing, leaf.flatten(), id, || {
                format!(
                    "{} without a MAC though rows before have one, this one first: written while no master key was loaded, or by somebody who has none",
                    rows(count)
                )
            });
        }
        let mut told = |kind, count: u64, log_id, detail: &dyn Fn() -> String| {
            if count > 0 {
                findings.push(kind, None, log_id, detail);
            }
        };
        told(FindingKind::NotAuthenticated, not_authenticated, None, &|| {
            format!(
                "{} from before the log had a key: sealed like the others, but anybody could have written them",
                rows(not_authenticated)
            )
        });
        for (key_id, (count, first)) in &unlisted.not_checked {
            told(FindingKind::MacNotChecked, *count, Some(*first), &|| {
                format!(
                    "the MACs of {} are not checked: audit key {key_id} is not there, or not usable",
                    rows(*count)
                )
            });
        }
        told(FindingKind::NotYetSealed, unlisted.not_yet_sealed, None, &|| {
            format!("{} are to be sealed next", rows(unlisted.not_yet_sealed))
        });
        told(FindingKind::NotSealed, unlisted.not_sealed, unlisted.first_not_sealed, &|| {
            format!(
                "{} are not sealed though they are not new: who may write the table could delete them unnoticed",
                rows(unlisted.not_sealed)
            )
        });
        let gap_events: u64 = gaps.iter().map(|(_, events)| *events).sum();
        told(FindingKind::Gap, gaps.len() as u64 + unlisted.more_gaps, None, &|| {
            format!(
                "{} of event audit_gap: {}{gap_events} events were not written to the log",
                rows(gaps.len() as u64 + unlisted.more_gaps),
                if unlisted.more_gaps > 0 { "more than " } else { "" },
            )
        });
        if self.ids.forgot() {
            self.findings.push(FindingKind::MacNotChecked, None, None, || {
                "there are too many gaps between the ids to remember all: a repeated id may go unnoticed".into()
            });
        }
        let from = self.from;
        match self.beginning {
            Beginning::First => {}
            Beginning::Asked => self.findings.push(FindingKind::Partial, Some(from), None, || {
                format!("the verification began at leaf {from}, where a checkpoint was signed")
            }),
            Beginning::Retired => {
                let root = self.first_root.map(|root| base16ct::lower::encode_string(&root));
                let is_edge =
                    |(until, of): &(u64, String)| *until == from && Some(of) == root.as_ref();
                let is_known = self.unlisted.retired.iter().any(is_edge);
                let kind =
                    if is_known { FindingKind::Retired } else { FindingKind::RetentionUnknown };
                self.findings.push(kind, Some(from), None, || {
                    if is_known {
                        format!("rows below leaf {from} were dropped by the retention")
                    } else {
                        format!("rows below leaf {from} are gone, and no row of event audit_retired says so")
                    }
                });
            }
        }
    }
}

/// What the row of a retirement says: the size is its count, its reason ends with `leaves below 1042,
/// root 00ab…`.
fn retired_until(row: &LogRow) -> Option<(u64, String)> {
    let size = u64::try_from(row.value_count?).ok()?;
    let (before, root) = row.reason.as_deref()?.rsplit_once(", root ")?;
    before.ends_with(&format!("leaves below {size}")).then(|| (size, root.to_owned()))
}

fn rows(count: u64) -> String {
    if count == 1 { "1 row".into() } else { format!("{count} rows") }
}
