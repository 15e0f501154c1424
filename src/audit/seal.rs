//! Sealing: rows of the log become leaves of a Merkle tree, whose checkpoints others sign.
//!
//! A row becomes a leaf when it is seen: what is committed and has no leaf gets the next numbers. So a
//! transaction that commits late is sealed late, and nothing depends on the order of transaction ids.

use fieldcrypt_audit::{Checkpoint, CompactRange, Note};
use pgrx::pg_sys::BuiltinOid;

use super::tree::{self, Tree};
use super::{notes, row};
use crate::error::Error;
use crate::pg::spi::{self, Parameter};
use crate::pg::{arrays, clock, log_table};

/// What a step did.
#[derive(Debug, Default, Clone, Copy)]
pub struct Sealed {
    /// Rows that became leaves.
    pub rows: u64,
    /// Whether there may be more.
    pub has_more: bool,
    /// Whether a checkpoint is due.
    pub is_due: bool,
}

/// Gives the next leaf numbers to committed rows that have none, at most `limit` of them. Nothing happens
/// in a database whose log is not to be sealed yet (see [`origin`]).
pub fn seal_step(limit: usize) -> Result<Sealed, Error> {
    tree::with_tree(|tree| {
        let now = clock::now();
        // Rows that commit late have low ids. To look for them among rows that were sealed lately is
        // dear as long as an old transaction keeps dead index entries, so it is done less often.
        let all = now >= tree.look_back_at;
        let after = if all { tree.looked_until } else { tree.highest_id };
        let mut rows: Vec<(i64, i64)> = Vec::new();
        let mut hashes = Vec::new();
        let mut encoded = Vec::new();
        tree::with_index_scans(|| {
            spi::each_row(
                "SELECT l.* FROM fieldcrypt.audit_log AS l
                  WHERE l.leaf IS NULL AND l.id OPERATOR(pg_catalog.>) $1
                  ORDER BY l.id LIMIT $2",
                &[Parameter::BigInt(Some(after)), Parameter::BigInt(Some(limit as i64))],
                |found| {
                    let row = row::read(found)?;
                    row.encode(&mut encoded);
                    hashes.push(row.leaf_hash(&encoded));
                    rows.push((row.id, found.bigint(row::columns::AT)?));
                    Ok(())
                },
            )
        })?;
        let has_more = rows.len() == limit;
        tree.is_complete = false;
        if all {
            let end = rows.last().filter(|_| has_more).map_or(0, |(id, _)| *id);
            tree.looked_until = end;
            tree.is_complete = !has_more;
            if !has_more {
                let took = clock::now() - now;
                tree.look_back_at = now + (20 * took).max(LOOK_BACK_PAUSE);
            }
        }
        let first = tree.frontier.size();
        for ((id, _), hash) in rows.iter().zip(&hashes) {
            tree.push(*hash);
            tree.highest_id = tree.highest_id.max(*id);
        }
        if !rows.is_empty() {
            let touched = tree::with_index_scans(|| number(&rows, first))?;
            if touched != rows.len() as u64 {
                return Err(Error::Internal("rows to be sealed are gone".into()));
            }
        }
        Ok(tree.sealed(rows.len(), has_more))
    })
    .map(Option::unwrap_or_default)
}

/// Whether everything that was committed before the last step has a leaf. If not, the next step sees to
/// it: for who is about to leave.
pub fn is_complete() -> bool {
    tree::if_known(|tree| {
        if !tree.is_complete {
            tree.look_back_at = 0;
        }
        tree.is_complete
    })
    .unwrap_or(true)
}

/// How long stragglers may wait at least, in microseconds.
const LOOK_BACK_PAUSE: i64 = 2_000_000;

fn number(rows: &[(i64, i64)], first: u64) -> Result<u64, Error> {
    let ids = arrays::of_numbers(BuiltinOid::INT8OID, rows.iter().map(|(id, _)| Some(*id)))?;
    let times = rows.iter().map(|(_, at)| Some(*at));
    let times = arrays::of_numbers(BuiltinOid::TIMESTAMPTZOID, times)?;
    spi::execute(
        "UPDATE fieldcrypt.audit_log AS l
            SET leaf = $3 OPERATOR(pg_catalog.+) u.place OPERATOR(pg_catalog.-) 1
           FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) WITH ORDINALITY AS u (id, at, place)
          WHERE l.id OPERATOR(pg_catalog.=) u.id AND l.at OPERATOR(pg_catalog.=) u.at",
        &[
            Parameter::Made(BuiltinOid::INT8ARRAYOID, Some(ids)),
            Parameter::Made(BuiltinOid::TIMESTAMPTZARRAYOID, Some(times)),
            Parameter::BigInt(Some(first as i64)),
        ],
    )
}

/// The tree that the next checkpoint is to state. `None` where the log is not sealed. It may be that nothing is
/// new: whoever asks knows whether another checkpoint of the same size is wanted.
pub fn unsigned() -> Result<Option<Tree>, Error> {
    tree::with_tree(|tree| Ok(tree.clone()))
}

/// Stores a signed checkpoint of this log, of the tree as it is or was since the last one.
pub fn store_checkpoint(note: &str, signer_id: i64) -> Result<(), Error> {
    let malformed = || Error::Internal("the signed checkpoint is none of this log".into());
    let text = Note::parse(note).map_err(|_| malformed())?;
    let checkpoint = Checkpoint::parse(text.text()).map_err(|_| malformed())?;
    let stored = tree::with_tree(|tree| {
        let frontier = tree.at(checkpoint.size)?.ok_or_else(malformed)?;
        if checkpoint.log_id() != Some(tree.origin.log) || frontier.root() != checkpoint.root {
            return Err(malformed());
        }
        // When it was signed: it may have waited for who stores it.
        let at = checkpoint.time().map(clock::from_unix_time).ok_or_else(malformed)?;
        spi::execute(
            "INSERT INTO fieldcrypt.audit_checkpoints
                    (id, size, at, root, frontier, signer_id, origin_id, is_final, note)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8 OPERATOR(pg_catalog.=) 1, $9)",
            &[
                Parameter::BigInt(Some(log_table::next_log_id()?)),
                Parameter::BigInt(Some(checkpoint.size as i64)),
                Parameter::Time(Some(at)),
                Parameter::Bytea(&checkpoint.root),
                Parameter::Bytea(&frontier.to_bytes()),
                Parameter::BigInt(Some(signer_id)),
                Parameter::BigInt(Some(tree.origin.id)),
                Parameter::Integer(i32::from(checkpoint.is_final())),
                Parameter::Text(Some(&notes::to_database(note))),
            ],
        )?;
        if frontier.size() == tree.frontier.size() {
            tree.range = CompactRange::new(frontier.size());
        } else {
            tree.range = tree::leaves_from(frontier.size(), |_| ())?;
        }
        tree.stored = frontier;
        tree.previous = Some(checkpoint.hash());
        tree.since = clock::now();
        Ok(())
    })?;
    stored.ok_or_else(malformed)
}

/// Stores a new signing key of this log, and gives its row's id.
pub fn store_signer(signer: &NewSigner<'_>) -> Result<i64, Error> {
    let stored = tree::with_tree(|tree| {
        let id = log_table::next_log_id()?;
        spi::execute(
            "INSERT INTO fieldcrypt.audit_signers
                    (id, origin_id, public_key, introduced_at, introduced_by, from_size, is_clean, proof)
             VALUES ($1, $2, $3, $4, $5, $6, $7 OPERATOR(pg_catalog.=) 1, $8)",
            &[
                Parameter::BigInt(Some(id)),
                Parameter::BigInt(Some(tree.origin.id)),
                Parameter::Text(Some(signer.public_key.as_bytes())),
                Parameter::Time(Some(clock::from_unix_time(signer.at))),
                Parameter::Text(Some(signer.introduced_by.as_bytes())),
                Parameter::BigInt(Some(signer.from_size as i64)),
                Parameter::Integer(i32::from(signer.is_clean)),
                Parameter::Text(Some(&notes::to_database(signer.proof))),
            ],
        )?;
        tree.signer = Some((id, signer.public_key.to_owned()));
        Ok(id)
    })?;
    stored.ok_or_else(|| Error::Internal("the log of this database is not sealed yet".into()))
}

/// A signing key that is new to the log.
pub struct NewSigner<'a> {
    /// Its text form.
    pub public_key: &'a str,
    /// Who vouches for it: `successor`, `mac` or `itself`.
    pub introduced_by: &'static str,
    /// When, in microseconds since 1970: it may have waited long for something to sign.
    pub at: i64,
    /// Leaves when it was introduced.
    pub from_size: u64,
    /// Whether everything before was sealed.
    pub is_clean: bool,
    /// The statement that introduces it.
    pub proof: &'a str,
}
