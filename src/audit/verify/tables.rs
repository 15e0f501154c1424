//! What seals the log, as the tables hold it.

use std::collections::VecDeque;

use fieldcrypt_audit::verify::{Acknowledgement, Origin, Signer, StoredCheckpoint};
use fieldcrypt_audit::{Frontier, LogId, LogRow};

use super::Period;
use crate::audit::notes;
use crate::audit::row;
use crate::error::Error;
use crate::pg::spi::{self, Parameter};
use crate::pg::tuple::Row;
use crate::pg::{clock, encoding};

/// The row with this id.
pub fn sealed_row(id: i64) -> Result<LogRow, Error> {
    let found = spi::first_row(
        "SELECT l.* FROM fieldcrypt.audit_log AS l WHERE l.id OPERATOR(pg_catalog.=) $1 LIMIT 1",
        &[Parameter::BigInt(Some(id))],
        row::read,
    )?;
    found.ok_or_else(|| Error::AuditVerification {
        problem: format!("the audit log has no row {id}"),
        hint: "Column id of fieldcrypt.audit_log says which there are.",
    })
}

/// Checkpoints by size and id, read as they are needed.
pub struct Checkpoints {
    buffer: VecDeque<StoredCheckpoint>,
    /// Size and id of the last one read, and of the last one to be read.
    read: (i64, i64),
    last: Option<(i64, i64)>,
}

impl Checkpoints {
    const BATCH: i64 = 500;

    /// Those behind `first`, up to `last`.
    pub fn after(first: Option<&StoredCheckpoint>, last: Option<&StoredCheckpoint>) -> Self {
        let place = |one: &StoredCheckpoint| (one.size, one.id);
        Self {
            buffer: VecDeque::new(),
            read: first.map_or((i64::MIN, i64::MIN), place),
            last: last.map(place),
        }
    }

    /// The next one, if it states at most so many rows.
    pub fn next_up_to(&mut self, size: i64) -> Result<Option<StoredCheckpoint>, Error> {
        if self.buffer.is_empty() {
            self.fill()?;
        }
        Ok(self.buffer.pop_front_if(|one| one.size <= size))
    }

    fn fill(&mut self) -> Result<(), Error> {
        let Some(last) = self.last.filter(|last| self.read < *last) else { return Ok(()) };
        let buffer = &mut self.buffer;
        spi::each_row(
            "SELECT c.id, c.size, c.at, c.root, c.frontier, c.signer_id, c.origin_id, c.is_final, c.note
               FROM fieldcrypt.audit_checkpoints AS c
              WHERE (c.size OPERATOR(pg_catalog.>) $1 OR c.size OPERATOR(pg_catalog.=) $1 AND c.id OPERATOR(pg_catalog.>) $2)
                AND (c.size OPERATOR(pg_catalog.<) $3 OR c.size OPERATOR(pg_catalog.=) $3 AND c.id OPERATOR(pg_catalog.<=) $4)
              ORDER BY c.size, c.id LIMIT $5",
            &[
                Parameter::BigInt(Some(self.read.0)),
                Parameter::BigInt(Some(self.read.1)),
                Parameter::BigInt(Some(last.0)),
                Parameter::BigInt(Some(last.1)),
                Parameter::BigInt(Some(Self::BATCH)),
            ],
            |row| {
                buffer.push_back(checkpoint(row)?);
                Ok(())
            },
        )?;
        self.read = match self.buffer.back() {
            Some(one) => (one.size, one.id),
            None => last,
        };
        Ok(())
    }
}

/// The last checkpoint of the period.
pub fn last_checkpoint(period: &Period) -> Result<Option<StoredCheckpoint>, Error> {
    spi::first_row(
        "SELECT c.id, c.size, c.at, c.root, c.frontier, c.signer_id, c.origin_id, c.is_final, c.note
           FROM fieldcrypt.audit_checkpoints AS c
          WHERE $1 IS NULL OR c.size OPERATOR(pg_catalog.<=) (
                    SELECT pg_catalog.min(e.size) FROM fieldcrypt.audit_checkpoints AS e
                     WHERE e.at OPERATOR(pg_catalog.>=) $1)
             OR NOT EXISTS (SELECT FROM fieldcrypt.audit_checkpoints AS e WHERE e.at OPERATOR(pg_catalog.>=) $1)
          ORDER BY c.size DESC, c.id DESC LIMIT 1",
        &[Parameter::Time(period.to)],
        checkpoint,
    )
}

/// The last checkpoint that was signed by then and states at most so many rows.
pub fn checkpoint_before(at: i64, size: i64) -> Result<Option<StoredCheckpoint>, Error> {
    spi::first_row(
        "SELECT c.id, c.size, c.at, c.root, c.frontier, c.signer_id, c.origin_id, c.is_final, c.note
           FROM fieldcrypt.audit_checkpoints AS c
          WHERE c.at OPERATOR(pg_catalog.<=) $1 AND c.size OPERATOR(pg_catalog.<=) $2
          ORDER BY c.size DESC, c.id DESC LIMIT 1",
        &[Parameter::Time(Some(at)), Parameter::BigInt(Some(size))],
        checkpoint,
    )
}

fn checkpoint(row: &Row<'_>) -> Result<StoredCheckpoint, Error> {
    Ok(StoredCheckpoint {
        id: row.bigint(1)?,
        size: row.bigint(2)?,
        at: clock::unix_time(row.bigint(3)?),
        root: row.bytes(4)?.to_vec(),
        frontier: row.bytes(5)?.to_vec(),
        signer_id: row.bigint(6)?,
        origin_id: row.bigint(7)?,
        is_final: row.boolean(8)?,
        note: notes::from_database(row.bytes(9)?),
    })
}

/// The edge of the tree of the rows that the retention has dropped.
pub fn retired_edge() -> Result<Option<Frontier>, Error> {
    edge(
        "SELECT r.frontier FROM fieldcrypt.audit_retirements AS r ORDER BY r.size DESC, r.id DESC LIMIT 1",
        &[],
    )
}

/// The largest edge of the tree that does not hold this leaf yet.
pub fn edge_before(leaf: u64) -> Result<Option<Frontier>, Error> {
    edge(
        "SELECT e.frontier FROM (
            SELECT c.size, c.frontier FROM fieldcrypt.audit_checkpoints AS c
            UNION ALL
            SELECT r.size, r.frontier FROM fieldcrypt.audit_retirements AS r) AS e
          WHERE e.size OPERATOR(pg_catalog.<=) $1 ORDER BY e.size DESC LIMIT 1",
        &[Parameter::BigInt(Some(leaf.cast_signed()))],
    )
}

fn edge(statement: &'static str, parameters: &[Parameter<'_>]) -> Result<Option<Frontier>, Error> {
    let found =
        spi::first_row(statement, parameters, |row| Ok(Frontier::from_bytes(row.bytes(1)?).ok()))?;
    Ok(found.flatten())
}

/// The origins, in their order.
pub fn origins() -> Result<Vec<Origin>, Error> {
    spi::rows(
        "SELECT o.id, o.log_id, o.at, o.cause, o.system_identifier, o.database_oid, o.timeline,
                o.old_log_id, o.old_size, o.old_root, o.acknowledged_at, o.acknowledged_by,
                o.acknowledged_reason
           FROM fieldcrypt.audit_origins AS o ORDER BY o.id",
        &[],
        |row| {
            let said = (row.optional_bigint(11)?, row.optional_bytes(12)?, row.optional_bytes(13)?);
            let acknowledgement = match said {
                (None, None, None) => None,
                (at, by, reason) => Some(Acknowledgement {
                    at: at.map_or(0, clock::unix_time),
                    by: by.map(encoding::lossy).unwrap_or_default(),
                    reason: reason.map(encoding::lossy).unwrap_or_default(),
                }),
            };
            Ok(Origin {
                id: row.bigint(1)?,
                log: log_id(row.bytes(2)?),
                at: clock::unix_time(row.bigint(3)?),
                cause: encoding::lossy(row.bytes(4)?),
                system_identifier: row.bigint(5)?,
                database_oid: row.bigint(6)?,
                timeline: row.bigint(7)?,
                old_log: row.optional_bytes(8)?.map(log_id),
                old_size: row.bigint(9)?,
                old_root: row.bytes(10)?.to_vec(),
                acknowledgement,
            })
        },
    )
}

/// Another length than 16 bytes is no log's.
fn log_id(bytes: &[u8]) -> LogId {
    LogId(bytes.try_into().unwrap_or_default())
}

/// The signers, in their order.
pub fn signers() -> Result<Vec<Signer>, Error> {
    spi::rows(
        "SELECT s.id, s.origin_id, s.public_key, s.introduced_at, s.introduced_by, s.from_size,
                s.is_clean, s.proof
           FROM fieldcrypt.audit_signers AS s ORDER BY s.id",
        &[],
        |row| {
            Ok(Signer {
                id: row.bigint(1)?,
                origin_id: row.bigint(2)?,
                public_key: encoding::lossy(row.bytes(3)?),
                introduced_at: clock::unix_time(row.bigint(4)?),
                introduced_by: encoding::lossy(row.bytes(5)?),
                from_size: row.bigint(6)?,
                is_clean: row.boolean(7)?,
                proof: notes::from_database(row.bytes(8)?),
            })
        },
    )
}

/// The public key of a signer; empty if it is not there.
pub fn signer_key(id: i64) -> Result<String, Error> {
    let key = spi::first_row(
        "SELECT s.public_key FROM fieldcrypt.audit_signers AS s WHERE s.id OPERATOR(pg_catalog.=) $1",
        &[Parameter::BigInt(Some(id))],
        |row| Ok(encoding::lossy(row.bytes(1)?)),
    )?;
    Ok(key.unwrap_or_default())
}
