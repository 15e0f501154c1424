//! Which ids have been seen, in memory that grows with the gaps between them and not with their number.

use std::collections::BTreeMap;

/// Runs of ids beyond which no more are remembered: 10,000,000 gaps that rolled-back transactions
/// left would take some 300 MB.
const MOST_RUNS: usize = 1 << 20;

/// A set of ids, as runs of consecutive ones.
#[derive(Debug, Default)]
pub struct Ids {
    /// First and last id of each run.
    runs: BTreeMap<i64, i64>,
    forgotten: bool,
}

impl Ids {
    /// Whether the id is new.
    pub fn insert(&mut self, id: i64) -> bool {
        let before = self.runs.range(..=id).next_back().map(|(first, last)| (*first, *last));
        if before.is_some_and(|(_, last)| id <= last) {
            return false;
        }
        let after = id.checked_add(1).and_then(|next| self.runs.remove(&next));
        match before.filter(|(_, last)| *last == id - 1) {
            Some((first, _)) => {
                self.runs.insert(first, after.unwrap_or(id));
            }
            None => {
                self.runs.insert(id, after.unwrap_or(id));
            }
        }
        if self.runs.len() > MOST_RUNS {
            // The oldest: what comes again is mostly near.
            self.runs.pop_first();
            self.forgotten = true;
        }
        true
    }

    /// Whether some ids are not remembered.
    pub fn forgot(&self) -> bool {
        self.forgotten
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::Ids;

    proptest! {
        #[test]
        fn an_id_is_new_once(ids in prop::collection::vec(prop_oneof![
            -20i64..20, Just(i64::MAX), Just(i64::MAX - 1), Just(i64::MIN), Just(i64::MIN + 1),
        ], 0..60)) {
            let (mut seen, mut known) = (Ids::default(), HashSet::new());
            for id in ids {
                prop_assert_eq!(seen.insert(id), known.insert(id));
            }
            prop_assert!(!seen.forgot());
        }
    }

    #[test]
    fn consecutive_ids_are_one_run() {
        let mut ids = Ids::default();
        for id in (0..1000).rev().chain(2000..3000).chain(1000..2000) {
            assert!(ids.insert(id));
        }
        assert_eq!(ids.runs.len(), 1);
    }
}
