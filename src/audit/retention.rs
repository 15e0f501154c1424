//! Retention: years of the log whose rows are all sealed, behind a checkpoint, and old enough are emptied.
//!
//! What stays is the tree as it was when it ended with them: from there on verification goes on, and comes
//! to the same roots, which nobody could bring about with another beginning.

use fieldcrypt_audit::Frontier;

use super::{Details, tree};
use crate::error::Error;
use crate::events::Event;
use crate::keyring::hexadecimal;
use crate::pg::spi::{self, Parameter};
use crate::pg::{clock, encoding, log_table};

/// Empties a partition, and gives the number of its rows.
pub fn retire(partition: &[u8]) -> Result<i64, Error> {
    let name = encoding::lossy(partition);
    log_table::lock_sealing()?;
    let found = spi::first_row(
        "SELECT p.row_count, p.unsealed, p.size FROM fieldcrypt_internal.lock_audit_partition($1) AS p",
        &[Parameter::Text(Some(partition))],
        |row| Ok((row.bigint(1)?, row.bigint(2)?, row.bigint(3)?)),
    )?;
    let Some((rows, unsealed, size)) = found else {
        return Err(Error::Internal("a partition has no rows to be counted".into()));
    };
    if unsealed > 0 {
        return Err(Error::AuditSeal {
            problem: format!("{unsealed} rows of {name} are not sealed yet"),
            hint: "Wait for the worker of the audit log: SELECT * FROM fieldcrypt.audit_status().",
        });
    }
    let base = retired_frontier()?;
    // Years overlap where transactions committed late: what is retired already stays so.
    let size = (size as u64).max(base.size());
    let Some((checkpoint_size, checkpoint_root)) = checkpoint_behind(size)? else {
        return Err(Error::AuditSeal {
            problem: format!("no checkpoint covers all rows of {name}"),
            hint: "Wait for the worker of the audit log: SELECT * FROM fieldcrypt.audit_status().",
        });
    };
    let frontier = tree::frontier_between(base, size)?;
    let further = tree::frontier_between(frontier.clone(), checkpoint_size)?;
    if further.root() != checkpoint_root {
        return Err(Error::AuditSeal {
            problem: format!(
                "the audit log does not match its checkpoint of size {checkpoint_size}: nothing is retired"
            ),
            hint: "SELECT * FROM fieldcrypt.verify_audit_log() says what was changed.",
        });
    }
    spi::execute(
        "INSERT INTO fieldcrypt.audit_retirements
                (id, at, partition_name, row_count, size, root, frontier)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        &[
            Parameter::BigInt(Some(log_table::next_log_id()?)),
            Parameter::Time(Some(clock::now())),
            Parameter::Text(Some(partition)),
            Parameter::BigInt(Some(rows)),
            Parameter::BigInt(Some(size as i64)),
            Parameter::Bytea(&frontier.root()),
            Parameter::Bytea(&frontier.to_bytes()),
        ],
    )?;
    spi::execute(
        "SELECT fieldcrypt_internal.empty_audit_partition($1)",
        &[Parameter::Text(Some(partition))],
    )?;
    let root = hexadecimal(&frontier.root());
    let reason = format!("{rows} rows: leaves below {size}, root {root}");
    super::record(
        Event::AuditRetired,
        &Details {
            table_name: Some(partition),
            reason: Some(reason.as_bytes()),
            // All that was ever retired, which is what verification goes on from.
            value_count: Some(size as i64),
            ..Details::default()
        },
    )?;
    Ok(rows)
}

/// The tree where earlier retirements ended. What comes behind it is read once more, row by row: what is about to
/// go may be the evidence that somebody changed it.
fn retired_frontier() -> Result<Frontier, Error> {
    let found = spi::first_row(
        "SELECT r.frontier FROM fieldcrypt.audit_retirements AS r ORDER BY r.size DESC, r.id DESC LIMIT 1",
        &[],
        |row| {
            Frontier::from_bytes(row.bytes(1)?)
                .map_err(|_| Error::KeyTable("a retirement of the audit log was damaged".into()))
        },
    )?;
    Ok(found.unwrap_or_default())
}

/// The first checkpoint of at least this size.
fn checkpoint_behind(size: u64) -> Result<Option<(u64, [u8; 32])>, Error> {
    spi::first_row(
        "SELECT c.size, c.root FROM fieldcrypt.audit_checkpoints AS c
          WHERE c.size OPERATOR(pg_catalog.>=) $1 ORDER BY c.size, c.id LIMIT 1",
        &[Parameter::BigInt(Some(size as i64))],
        |row| {
            let root = row.bytes(2)?.try_into();
            let root = root
                .map_err(|_| Error::KeyTable("a checkpoint of the audit log was damaged".into()))?;
            Ok((row.bigint(1)? as u64, root))
        },
    )
}
