//! Checkpoints: their columns, their signatures, the chain of them, and the rows below them.

use super::finding::FindingKind;
use super::{Beginning, Sealing, StoredCheckpoint, Verifier, is_being_signed, is_same_time};
use crate::checkpoint::Checkpoint;
use crate::note::{Malformed, Note};
use crate::tree::{Frontier, Hash};

/// What the next checkpoint is compared with.
pub(super) struct LastCheckpoint {
    pub size: u64,
    /// Of its text; `None` if that can't be read.
    pub hash: Option<Hash>,
    pub signer: Option<usize>,
    pub origin: Option<usize>,
    pub is_final: bool,
    pub at: i64,
}

impl Verifier {
    /// Begins at a checkpoint whose rows and predecessors are not looked at, instead of at leaf 0.
    /// `false` if it can't be begun at: it is not what was signed, or it holds no usable edge of the
    /// tree. Before any row and any other checkpoint.
    pub fn begin_at(&mut self, checkpoint: &StoredCheckpoint) -> bool {
        let Ok((stated, note)) = read(checkpoint) else { return false };
        let Some(signer) = self.signer_of(checkpoint) else { return false };
        let Some(edge) = edge(checkpoint, &stated) else { return false };
        let key = self.signers[signer].key.as_ref();
        let is_signed = key.is_some_and(|key| note.verify(key).is_ok());
        if !is_signed || !self.signers[signer].is_introduced {
            return false;
        }
        self.begin(edge, Beginning::Asked);
        // The audit key introduced a key that signed this: its id was dealt when there was one.
        self.keyed_before = Some(checkpoint.id);
        self.checkpoint(checkpoint);
        true
    }

    /// Begins where the retention has ended: at the edge of the tree that it keeps, whose truth shows at
    /// the next checkpoint. Before any row and any checkpoint, of which those below still come.
    pub fn begin_retired(&mut self, edge: Frontier) {
        self.begin(edge, Beginning::Retired);
    }

    fn begin(&mut self, edge: Frontier, beginning: Beginning) {
        self.next = edge.size();
        self.from = edge.size();
        self.good_until = edge.size();
        self.beginning = beginning;
        self.first_root = Some(edge.root());
        self.tree = Some(edge);
        // Roots of earlier sizes can't be compared any more.
        let from = self.from;
        self.expected.retain(|(size, ..)| *size >= from);
        for anchor in &mut self.anchors {
            anchor.is_before_beginning |= anchor.anchor.size().is_some_and(|size| size < from);
        }
    }

    /// The next checkpoint, by size and then by id.
    pub fn checkpoint(&mut self, checkpoint: &StoredCheckpoint) {
        self.summary.checkpoints += 1;
        let size = checkpoint.size;
        let leaf = u64::try_from(size).ok();
        let signer = self.signer_of(checkpoint);
        let mut found = |kind, detail: &str| {
            self.findings.push(kind, leaf, None, || format!("checkpoint of {size} rows: {detail}"));
        };
        let (stated, note) = match read(checkpoint) {
            Ok(read) => read,
            Err(Malformed) => {
                found(FindingKind::CheckpointChanged, "its note is no checkpoint");
                // What follows can't be linked to it, and must not be linked past it.
                let size = self.last.as_ref().map_or(0, |last| last.size);
                self.last = Some(LastCheckpoint {
                    size,
                    hash: None,
                    signer,
                    origin: None,
                    is_final: false,
                    at: i64::MIN,
                });
                return;
            }
        };
        let origin = stated
            .log_id()
            .and_then(|log| self.origins.iter().position(|origin| origin.log == log));
        for (column, is_same) in [
            ("size", leaf == Some(stated.size)),
            ("at", stated.time().is_some_and(|time| is_same_time(time, checkpoint.at))),
            ("root", checkpoint.root == stated.root),
            ("is_final", checkpoint.is_final == stated.is_final()),
            ("frontier", edge(checkpoint, &stated).is_some()),
            (
                "origin_id",
                origin.is_some_and(|index| self.origins[index].id == checkpoint.origin_id),
            ),
        ] {
            if !is_same {
                let detail = format!("column {column} is not what its note says");
                found(FindingKind::CheckpointChanged, &detail);
            }
        }
        let is_signed = match signer.map(|index| &self.signers[index]) {
            None => {
                found(FindingKind::CheckpointNotSigned, "the key that signed it is not stored");
                false
            }
            Some(signer) => {
                let verdict = signer.key.as_ref().map(|key| note.verify(key));
                match verdict {
                    Some(Ok(())) => {}
                    Some(Err(problem)) => {
                        found(FindingKind::CheckpointNotSigned, &problem.to_string());
                    }
                    None => found(FindingKind::CheckpointNotSigned, "its key can't be read"),
                }
                let named = signer.key.as_ref().map(|key| key.name());
                if named.is_some_and(|name| name != stated.origin) {
                    found(FindingKind::CheckpointNotSigned, "its key is that of another log");
                }
                verdict == Some(Ok(()))
            }
        };
        // In its place: behind its predecessor, of its key's and its log's time.
        match (&self.last, stated.previous()) {
            (_, None) => {
                let detail = "it does not say which one came before it";
                found(FindingKind::CheckpointChanged, detail);
            }
            (None, Some(Some(_))) if self.from == 0 || stated.size > self.from => {
                let detail = "the one before it is not there, nor any other";
                found(FindingKind::CheckpointMissing, detail);
            }
            // The first one of a log need not name the last one of another.
            (Some(last), Some(None)) if last.origin.is_none_or(|last| Some(last) != origin) => {}
            (Some(last), Some(previous)) if last.hash.is_some() && previous != last.hash => {
                let detail = format!(
                    "the one before it is not there; the last that is has {} rows",
                    last.size
                );
                found(FindingKind::CheckpointMissing, &detail);
            }
            _ => {}
        }
        let before = self.last.take();
        let before = before.as_ref();
        let is_backwards = before.is_some_and(|last| {
            stated.size < last.size
                || matches!((last.signer, signer), (Some(a), Some(b)) if b < a)
                || matches!((last.origin, origin), (Some(a), Some(b)) if b < a)
        });
        if is_backwards {
            found(FindingKind::CheckpointChanged, "it states less than the one before it");
        }
        let statement_of = |index: usize| self.signers.get(index)?.statement.as_ref();
        if let Some(index) = signer {
            let is_early = statement_of(index).is_some_and(|own| stated.size < own.size);
            let is_late = statement_of(index + 1).is_some_and(|next| stated.size > next.size);
            if is_early || is_late {
                let detail = "it was signed outside of the time of its key";
                found(FindingKind::CheckpointNotSigned, detail);
            }
        }
        if let Some(index) = origin {
            let size = i64::try_from(stated.size).unwrap_or(i64::MAX);
            let next = self.origins.get(index + 1);
            if size < self.origins[index].old_size || next.is_some_and(|next| size > next.old_size)
            {
                let detail = "it was signed outside of the time of its log";
                found(FindingKind::CheckpointNotSigned, detail);
            }
        }
        // A key that says that all was sealed before it follows a checkpoint that says so, too.
        if let (Some(index), Some(last)) = (signer, before)
            && last.signer != Some(index)
            && !last.is_final
            && let Some(statement) = statement_of(index)
            && statement.is_clean
            && matches!(
                self.signers[index].introduction,
                Some(crate::signer::Introduction::Mac(_) | crate::signer::Introduction::Itself)
            )
        {
            let id = self.signers[index].id;
            let (kind, about) = (FindingKind::UncleanHandover, statement.size);
            self.findings.push_excusable(kind, about, leaf, || {
                format!(
                    "signer {id} says that all was sealed before it, but no final checkpoint does"
                )
            });
        }
        self.compare_root(checkpoint, &stated, is_signed);
        let size = if is_signed { stated.size } else { before.map_or(0, |last| last.size) };
        self.last = Some(LastCheckpoint {
            size,
            hash: Some(stated.hash()),
            signer,
            origin,
            is_final: stated.is_final(),
            at: stated.time().unwrap_or(i64::MIN),
        });
        self.oldest_uncovered = None;
    }

    /// The root of the rows below it; behind damage the tree goes on from the checkpoint's edge, so that
    /// the damage is known to lie between two checkpoints.
    fn compare_root(
        &mut self,
        checkpoint: &StoredCheckpoint,
        stated: &Checkpoint,
        is_signed: bool,
    ) {
        let size = stated.size;
        if size < self.from {
            return;
        }
        if size > self.next {
            if is_signed {
                // All rows below it have passed. Whether a gap or a cut tail shows at the next row.
                self.settle(self.next);
                self.gap.get_or_insert(self.next);
                self.next = size;
                self.tree = edge(checkpoint, stated);
                self.good_until = size;
                self.good_root = None;
                self.is_span_explained = self.tree.is_none();
            }
            return;
        }
        let known = match &self.tree {
            Some(tree) if tree.size() == size => Some(tree.root()),
            _ => None,
        };
        if known == Some(stated.root) {
            self.good_until = size;
            self.good_root = known;
            self.is_span_explained = false;
            return;
        }
        let good = self.good_until;
        if !self.is_span_explained || known.is_some() {
            self.findings.push(FindingKind::RootMismatch, Some(size), None, || {
                if good < size {
                    format!(
                        "the rows of the leaves {good} to {} are not those that were sealed: one was changed, exchanged or put in, with or without its MAC",
                        size - 1
                    )
                } else {
                    format!("the checkpoint of {size} rows states another root than the one before it")
                }
            });
        }
        if size == self.next
            && is_signed
            && let Some(edge) = edge(checkpoint, stated)
        {
            self.tree = Some(edge);
            self.good_until = size;
            self.good_root = None;
            self.is_span_explained = false;
        }
    }

    fn signer_of(&self, checkpoint: &StoredCheckpoint) -> Option<usize> {
        self.signer_by_id.get(&checkpoint.signer_id).copied()
    }

    pub(super) fn finish_checkpoints(&mut self, now: i64) {
        let next = self.next;
        let is_new = |at| self.sealing == Sealing::StandsStill || is_being_signed(at, now);
        let are_new = self.oldest_uncovered.is_none_or(is_new);
        let Some(last) = &self.last else {
            if next > self.from {
                let kind = match self.sealing {
                    _ if are_new => FindingKind::NotYetCovered,
                    Sealing::Nobody => FindingKind::NotSealed,
                    _ => FindingKind::NotCovered,
                };
                self.findings.push(kind, Some(self.from), None, || {
                    "rows are numbered as leaves, and there is no checkpoint at all".into()
                });
            }
            return;
        };
        let (size, good) = (last.size, self.good_until);
        if let Some(first) = self.gap {
            self.findings.push(FindingKind::TailCut, Some(first), None, || {
                format!(
                    "the last rows are not there: the last checkpoint states {next} rows, of which the leaves {first} to {} are gone",
                    next - 1
                )
            });
        }
        if size < next {
            // Rows get their leaf numbers a moment before the checkpoint over them.
            let kind = match self.sealing {
                _ if are_new || is_new(last.at) => FindingKind::NotYetCovered,
                Sealing::Nobody => FindingKind::NotSealed,
                _ => FindingKind::NotCovered,
            };
            self.findings.push(kind, Some(size), None, || {
                if kind == FindingKind::NotYetCovered {
                    format!("a checkpoint over the leaves {size} to {} is to come", next - 1)
                } else {
                    format!(
                        "no checkpoint covers the rows of the leaves {size} to {}: the last one was taken away, or they were put in, or nothing signs",
                        next - 1
                    )
                }
            });
        }
        if good == size && self.gap.is_none() {
            self.summary.root = self.good_root;
        }
    }
}

fn read(checkpoint: &StoredCheckpoint) -> Result<(Checkpoint, Note), Malformed> {
    let note = Note::parse(&checkpoint.note)?;
    Ok((Checkpoint::parse(note.text())?, note))
}

/// The tree's edge that it stores, if that is one of the root that it states.
fn edge(checkpoint: &StoredCheckpoint, stated: &Checkpoint) -> Option<Frontier> {
    let edge = Frontier::from_bytes(&checkpoint.frontier).ok()?;
    (edge.size() == stated.size && edge.root() == stated.root).then_some(edge)
}
