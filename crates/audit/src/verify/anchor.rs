//! What is known outside of the database: public keys, and checkpoints that were kept elsewhere.

use super::finding::FindingKind;
use super::{Expected, Verifier};
use crate::checkpoint::Checkpoint;
use crate::note::{Malformed, Note, VerifyingKey};
use crate::tree::Hash;

/// A public key that was recorded outside, a checkpoint that was kept outside, or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    key: Option<VerifyingKey>,
    checkpoint: Option<(Note, Checkpoint)>,
}

/// How far an anchor has been compared.
pub(super) struct AnchorState {
    pub anchor: Anchor,
    pub is_before_beginning: bool,
    /// Something was said of it, good or bad.
    is_settled: bool,
    is_good: bool,
}

impl Anchor {
    /// Reads anchors from a text: any number of verifier keys, one a line, and then at most one note.
    /// With both, the note is to be signed by one of the keys. An empty text has none.
    pub fn parse(text: &str) -> Result<Vec<Self>, Malformed> {
        let mut keys = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (line, behind) = rest.split_once('\n').unwrap_or((rest, ""));
            let line = line.trim();
            if line.is_empty() {
                rest = behind;
                continue;
            }
            let Ok(key) = VerifyingKey::parse(line) else { break };
            keys.push(key);
            rest = behind;
        }
        let mut anchors: Vec<_> =
            keys.iter().map(|key| Self { key: Some(key.clone()), checkpoint: None }).collect();
        if !rest.is_empty() {
            let key = match keys.as_slice() {
                [] => None,
                keys => {
                    let note = Note::parse(&whole(rest))?;
                    Some(keys.iter().find(|key| note.verify(key).is_ok()).unwrap_or(&keys[0]))
                }
            };
            anchors.push(Self::checkpoint(rest, key.cloned())?);
        }
        Ok(anchors)
    }

    /// A checkpoint, signed by this key; `None`: by any key of the log.
    pub fn checkpoint(note: &str, key: Option<VerifyingKey>) -> Result<Self, Malformed> {
        let note = Note::parse(&whole(note))?;
        let checkpoint = Checkpoint::parse(note.text())?;
        Ok(Self { key, checkpoint: Some((note, checkpoint)) })
    }

    /// A key.
    pub fn key(key: VerifyingKey) -> Self {
        Self { key: Some(key), checkpoint: None }
    }

    /// The number of rows that it covers, if it is a checkpoint.
    pub fn size(&self) -> Option<u64> {
        self.checkpoint.as_ref().map(|(_, checkpoint)| checkpoint.size)
    }
}

/// A note that lost its last newline, or gained one, on the way through a terminal or a variable.
fn whole(note: &str) -> String {
    format!("{}\n", note.trim_end())
}

impl Verifier {
    /// Compares what can be compared before any row.
    pub(super) fn anchor(&mut self, anchors: Vec<Anchor>) {
        for anchor in anchors {
            let index = self.anchors.len();
            let problem = self.problem_of(&anchor);
            let size = anchor.size();
            let mut state = AnchorState {
                anchor,
                is_before_beginning: false,
                is_settled: false,
                is_good: false,
            };
            if let Some(problem) = problem {
                state.is_settled = true;
                self.findings.push(FindingKind::AnchorMismatch, size, None, || problem);
            } else if let Some((_, checkpoint)) = &state.anchor.checkpoint {
                let expected = Expected::Anchor(index);
                self.expected.push_back((checkpoint.size, checkpoint.root, expected));
            }
            self.anchors.push(state);
        }
    }

    fn problem_of(&self, anchor: &Anchor) -> Option<String> {
        let is_ours =
            |key: &VerifyingKey| self.signers.iter().any(|one| one.key.as_ref() == Some(key));
        if let Some(key) = anchor.key.as_ref().filter(|key| !is_ours(key)) {
            return Some(format!("the key {key}, known outside, is none of this log's signers"));
        }
        let (note, checkpoint) = anchor.checkpoint.as_ref()?;
        let size = checkpoint.size;
        let is_signed = match &anchor.key {
            Some(key) => note.verify(key).is_ok(),
            None => {
                let mut keys = self.signers.iter().filter_map(|one| one.key.as_ref());
                keys.any(|key| key.name() == checkpoint.origin && note.verify(key).is_ok())
            }
        };
        if !is_signed {
            return Some(format!(
                "the outside checkpoint of {size} rows is not signed by {}",
                if anchor.key.is_some() {
                    "the key that is known outside"
                } else {
                    "a key of this log"
                }
            ));
        }
        let log = checkpoint.log_id();
        let Some(index) = self.origins.iter().position(|origin| Some(origin.log) == log) else {
            return Some(format!(
                "the outside checkpoint is of another log, {}",
                checkpoint.origin
            ));
        };
        let next = self.origins.get(index + 1)?;
        (i64::try_from(size).is_ok_and(|size| size > next.old_size)).then(|| {
            format!(
                "the outside checkpoint states {size} rows, and the log went on elsewhere from {}: the rows behind are not in this database (it was restored from an older copy)",
                next.old_size
            )
        })
    }

    pub(super) fn settle_anchor(
        &mut self,
        index: usize,
        size: u64,
        known: Option<Hash>,
        root: &Hash,
    ) {
        self.anchors[index].is_settled = true;
        if known == Some(*root) {
            self.anchors[index].is_good = true;
            self.summary.anchored_size = self.summary.anchored_size.max(size);
            return;
        }
        self.findings.push(FindingKind::AnchorMismatch, Some(size), None, || match known {
            Some(_) => format!(
                "the rows below leaf {size} are not those of the outside checkpoint: the log was rewritten since"
            ),
            None => format!(
                "the rows below leaf {size} can't be compared with the outside checkpoint: some are missing"
            ),
        });
    }

    pub(super) fn finish_anchors(&mut self) {
        let (next, is_cut) = (self.next, self.is_cut);
        let findings = &mut self.findings;
        for state in &mut self.anchors {
            match state.anchor.size() {
                _ if state.is_settled => {}
                None => state.is_good = true,
                Some(size) if state.is_before_beginning => {
                    let from = self.from;
                    findings.push(FindingKind::AnchorNotChecked, Some(size), None, || {
                        format!("the outside checkpoint of {size} rows lies before leaf {from}, where this verification began")
                    });
                }
                Some(size) if is_cut => {
                    findings.push(FindingKind::AnchorNotChecked, Some(size), None, || {
                        format!("the outside checkpoint of {size} rows lies behind leaf {next}, where this verification ended")
                    });
                }
                Some(size) => findings.push(FindingKind::TailCut, Some(next), None, || {
                    format!("the last rows are not there: an outside checkpoint states {size} rows, and there are {next}")
                }),
            }
        }
        if self.anchors.is_empty() {
            findings.push(FindingKind::Unanchored, None, None, || {
                "nothing that is known outside was given: who had the master key and the signing key could have rewritten all of it".into()
            });
        }
        for state in self.anchors.iter().filter(|state| state.is_good) {
            let size = state.anchor.size();
            findings.push(FindingKind::Anchored, size, None, || match (size, &state.anchor.key) {
                (Some(size), _) => {
                    format!("the first {size} rows are those of the outside checkpoint")
                }
                (None, Some(key)) => format!("{} is one of the log's signers", key),
                (None, None) => String::new(),
            });
        }
    }
}
