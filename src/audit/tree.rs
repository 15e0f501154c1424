//! The tree over the sealed rows, as far as this process has it: its right edge is kept; a transaction that
//! rolls back drops it, and it is made anew from the last checkpoint and the rows sealed since.

use std::cell::RefCell;

use fieldcrypt_audit::tree::Hash;
use fieldcrypt_audit::{Checkpoint, CompactRange, Frontier, LogRow, Note};

use super::origin::{self, Origin};
use super::seal::Sealed;
use super::{notes, row, settings};
use crate::error::Error;
use crate::pg::spi::{self, Parameter};
use crate::pg::{audit_memory, clock, encoding, log_table, report, security, session, setting};

/// The tree, as far as this process has it.
#[derive(Clone)]
pub struct Tree {
    /// The log.
    pub origin: Origin,
    pub frontier: Frontier,
    /// The tree as of the last checkpoint that was stored.
    pub stored: Frontier,
    /// The hash of that checkpoint, if it is one of this origin.
    pub previous: Option<Hash>,
    /// The leaves since.
    pub range: CompactRange,
    /// The signing key that the log knows: its row and its text.
    pub signer: Option<(i64, String)>,
    pub since: i64,
    pub highest_id: i64,
    /// When rows with low ids are looked for again, and up to which id that was done by now.
    pub look_back_at: i64,
    pub looked_until: i64,
    /// Whether the last step has looked at all rows without a leaf.
    pub is_complete: bool,
}

impl Tree {
    fn load(origin: Origin) -> Result<Self, Error> {
        let (stored, previous, since) = match last_checkpoint()? {
            Some((origin_id, frontier, note, at)) if origin_id == origin.id => {
                let hash = Note::parse(&note)
                    .ok()
                    .and_then(|note| Checkpoint::parse(note.text()).ok())
                    .map(|checkpoint| checkpoint.hash());
                (frontier, hash, at)
            }
            // The first key of an origin vouches for all that it goes on from.
            before => {
                let frontier = before.map(|(_, frontier, ..)| frontier).unwrap_or_default();
                (frontier_between(frontier, origin.old_size)?, None, origin.at)
            }
        };
        let mut highest_id = 0;
        let range = leaves_from(stored.size(), |id| highest_id = highest_id.max(id))?;
        let mut frontier = stored.clone();
        frontier.append_range(&range).map_err(|_| {
            Error::KeyTable("the leaves of the audit log do not follow its last checkpoint".into())
        })?;
        let signer = last_signer(origin.id)?;
        Ok(Self {
            origin,
            frontier,
            stored,
            previous,
            range,
            signer,
            since,
            highest_id,
            look_back_at: 0,
            looked_until: 0,
            is_complete: false,
        })
    }

    /// One more leaf.
    pub fn push(&mut self, leaf: Hash) {
        self.frontier.append(leaf);
        self.range.push(leaf);
    }

    /// What a step did that sealed so many rows.
    pub fn sealed(&self, rows: usize, has_more: bool) -> Sealed {
        let unsigned = self.frontier.size() - self.stored.size();
        let waited = clock::now() - self.since >= settings::seal_interval();
        Sealed {
            rows: rows as u64,
            has_more,
            is_due: unsigned >= settings::SEAL_ROWS || unsigned > 0 && waited,
        }
    }

    /// The tree when it had this many leaves, if that was not before the last checkpoint.
    pub fn at(&self, size: u64) -> Result<Option<Frontier>, Error> {
        if size == self.frontier.size() {
            return Ok(Some(self.frontier.clone()));
        }
        if size < self.stored.size() || size > self.frontier.size() {
            return Ok(None);
        }
        frontier_between(self.stored.clone(), size).map(Some)
    }
}

thread_local! {
    static TREE: RefCell<Option<Tree>> = const { RefCell::new(None) };
}

/// Calls `work` with the tree, as the only one who seals and the owner of the tables; `None` where the log
/// is not to be sealed yet. After an error the tree is made anew.
pub fn with_tree<R>(work: impl FnOnce(&mut Tree) -> Result<R, Error>) -> Result<Option<R>, Error> {
    security::as_owner(|| {
        log_table::lock_sealing()?;
        let current = origin::current().and_then(|origin| {
            let Some(origin) = origin else { return Ok(None) };
            let known = TREE.take().filter(|tree| tree.origin.id == origin.id);
            known.map_or_else(|| Tree::load(origin), Ok).map(Some)
        });
        let mut tree = match current {
            Ok(Some(tree)) => tree,
            Ok(None) => return Ok(None),
            // Nothing can be sealed any more; but what happens is recorded.
            Err(Error::KeyTable(problem)) => {
                tell_of_damage(&problem);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let result = work(&mut tree)?;
        TREE.set(Some(tree));
        Ok(Some(result))
    })
}

/// Calls `work` with the tree, if this process has it.
pub fn if_known<R>(work: impl FnOnce(&mut Tree) -> R) -> Option<R> {
    TREE.with_borrow_mut(|tree| tree.as_mut().map(work))
}

/// A transaction rolled back that may have sealed. Called where nothing may fail.
pub fn transaction_gone() {
    let _ = TREE.try_with(|tree| tree.try_borrow_mut().map(|mut tree| *tree = None));
}

/// Once, until something else is wrong.
fn tell_of_damage(problem: &str) {
    if let Some(queue) = audit_memory::of_database(session::database())
        && queue.status().problem.as_deref() != Some(problem)
    {
        queue.set_problem(Some(problem));
        report::log(&format!("pg_fieldcrypt: the audit log is not sealed: {problem}"));
    }
}

/// The tree over all leaves that the tables tell of, and the hash of its last checkpoint.
pub fn loaded_frontier() -> Result<Frontier, Error> {
    let mut frontier = last_checkpoint()?.map(|(_, frontier, ..)| frontier).unwrap_or_default();
    let range = leaves_from(frontier.size(), |_| ())?;
    frontier.append_range(&range).map_err(|_| {
        Error::KeyTable("the leaves of the audit log do not follow its last checkpoint".into())
    })?;
    Ok(frontier)
}

/// Leaves numbers that are missing before the log counts as ending there: a number that somebody forged.
pub const LARGEST_GAP: u64 = 1 << 20;

/// The leaves from a number on; `see` is called with each row's id. A leaf whose row is gone is one of
/// zero bytes: sealing goes on, and verification finds what is missing.
pub fn leaves_from(size: u64, mut see: impl FnMut(i64)) -> Result<CompactRange, Error> {
    let mut range = CompactRange::new(size);
    let mut encoded = Vec::new();
    each_leaf(size, i64::MAX as u64, |row| {
        let leaf = row.leaf.unwrap_or_default() as u64;
        if leaf < range.end() || leaf - range.end() > LARGEST_GAP {
            return;
        }
        while range.end() < leaf {
            range.push([0; 32]);
        }
        row.encode(&mut encoded);
        range.push(row.leaf_hash(&encoded));
        see(row.id);
    })?;
    Ok(range)
}

/// A tree with further leaves, up to `size`; of those that are missing no more than [`LARGEST_GAP`] are made
/// up.
pub fn frontier_between(mut frontier: Frontier, size: u64) -> Result<Frontier, Error> {
    let mut encoded = Vec::new();
    let mut missing = 0;
    let mut fill = |frontier: &mut Frontier, until: u64| {
        missing = u64::saturating_add(missing, until.saturating_sub(frontier.size()));
        if missing <= LARGEST_GAP {
            while frontier.size() < until {
                frontier.append([0; 32]);
            }
        }
    };
    each_leaf(frontier.size(), size, |row| {
        let leaf = row.leaf.unwrap_or_default() as u64;
        fill(&mut frontier, leaf);
        if leaf == frontier.size() {
            row.encode(&mut encoded);
            frontier.append(row.leaf_hash(&encoded));
        }
    })?;
    fill(&mut frontier, size);
    if frontier.size() < size {
        return Err(Error::KeyTable(format!(
            "the audit log has no rows for most of the {size} leaves that it should have"
        )));
    }
    Ok(frontier)
}

fn each_leaf(from: u64, to: u64, mut visit: impl FnMut(&LogRow)) -> Result<(), Error> {
    with_index_scans(|| {
        spi::each_row(
            "SELECT l.* FROM fieldcrypt.audit_log AS l
              WHERE l.leaf OPERATOR(pg_catalog.>=) $1 AND l.leaf OPERATOR(pg_catalog.<) $2
              ORDER BY l.leaf",
            &[Parameter::BigInt(Some(from as i64)), Parameter::BigInt(Some(to as i64))],
            |found| {
                visit(&row::read(found)?);
                Ok(())
            },
        )
    })
}

/// The last checkpoint: its origin, tree, note and time.
fn last_checkpoint() -> Result<Option<(i64, Frontier, String, i64)>, Error> {
    spi::first_row(
        "SELECT c.origin_id, c.frontier, c.note, c.at FROM fieldcrypt.audit_checkpoints AS c
          ORDER BY c.size DESC, c.id DESC LIMIT 1",
        &[],
        |row| {
            let frontier = Frontier::from_bytes(row.bytes(2)?)
                .map_err(|_| Error::KeyTable("a checkpoint of the audit log was damaged".into()))?;
            let note = notes::from_database(row.bytes(3)?);
            Ok((row.bigint(1)?, frontier, note, row.bigint(4)?))
        },
    )
}

fn last_signer(origin_id: i64) -> Result<Option<(i64, String)>, Error> {
    spi::first_row(
        "SELECT s.id, s.public_key FROM fieldcrypt.audit_signers AS s
          WHERE s.origin_id OPERATOR(pg_catalog.=) $1 ORDER BY s.id DESC LIMIT 1",
        &[Parameter::BigInt(Some(origin_id))],
        |row| Ok((row.bigint(1)?, encoding::lossy(row.bytes(2)?))),
    )
}

/// Runs what must go by indexes, whatever the statistics of a log that was just begun say.
pub fn with_index_scans<R>(work: impl FnOnce() -> R) -> R {
    let settings = setting::TemporarySettings::begin(&[
        (c"enable_seqscan", c"off"),
        (c"enable_hashjoin", c"off"),
        (c"enable_mergejoin", c"off"),
        (c"enable_material", c"off"),
        (c"enable_bitmapscan", c"off"),
        (c"jit", c"off"),
    ]);
    let result = work();
    settings.end();
    result
}
