//! Origins: where the log is sealed, and under which name.
//!
//! A log is sealed in one place. After a restore, a copy or a promotion it goes on under a new random
//! name, and names the tree that it goes on from: two copies never sign under one name, and what an
//! outside checkpoint of the old name says is not taken for what the new one must say.

use std::cell::Cell;

use fieldcrypt_audit::{LogId, Place};

use super::{Details, acknowledge, tree};
use crate::error::Error;
use crate::events::Event;
use crate::keyring::hexadecimal;
use crate::pg::spi::{self, Parameter};
use crate::pg::{audit_memory, clock, encoding, key_table, log_table, roles, security, session};

/// A row of `audit_origins`.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Column `id`.
    pub id: i64,
    /// The log's name.
    pub log: LogId,
    /// Where it is sealed.
    pub place: Place,
    /// When it began, in Postgres's time.
    pub at: i64,
    /// The number of leaves that it goes on from.
    pub old_size: u64,
}

/// System identifier, database and timeline, as `origin_here` says them.
type Here = (i64, i64, i64);

thread_local! {
    /// The place of this process, which does not change while it lives: a promotion ends the workers of
    /// a standby, which has none.
    static HERE: Cell<Option<Here>> = const { Cell::new(None) };
}

/// How long nothing must have come from a restore before a restored log is gone on with.
const RESTORE_PAUSE: i64 = 60_000_000;
/// How often that is looked at meanwhile, by one worker or several.
const LOOK_PAUSE: i64 = 5_000_000;

/// The origin under which this database's log is sealed, begun now if need be. `None` where it is too
/// early: the database has no keys yet, or a dump is coming in, whose rows bring leaves with them. The
/// caller is the only one who seals, and the tables' owner.
pub fn current() -> Result<Option<Origin>, Error> {
    let here = here()?;
    let last = last()?;
    let first_own_id = log_table::first_own_log_id()?;
    // A dump that is restored over its own database brings origins from before the extension was created.
    let is_own = |origin: &Origin| origin.id >= first_own_id;
    let cause = match &last {
        Some((origin, at)) if *at == here && is_own(origin) => return Ok(Some(origin.clone())),
        Some((_, at)) if *at == here => "an older state of this database",
        Some((_, at)) if at.0 != here.0 => "another cluster",
        Some((_, at)) if at.1 != here.1 => "another database",
        Some(_) => "another timeline",
        None => "the first",
    };
    // A copy of files has brought its sequence along; a dump has not.
    let is_copy = last.as_ref().is_some_and(|(origin, _)| is_own(origin));
    if !is_copy && !may_begin(first_own_id)? {
        return Ok(None);
    }
    begin(last.map(|(origin, _)| origin), here, cause).map(Some)
}

/// Whether the log was begun where it is now: otherwise it is a copy that was not gone on with yet. A log
/// without an origin is one if the database has no keys.
pub fn is_begun_here() -> Result<bool, Error> {
    // A session of a standby lives on when that is promoted.
    HERE.set(None);
    let here = here()?;
    match last()? {
        Some((origin, at)) => Ok(at == here && origin.id >= log_table::first_own_log_id()?),
        None => key_table::has_keys(),
    }
}

fn may_begin(first_own_id: i64) -> Result<bool, Error> {
    if !key_table::has_keys()? {
        return Ok(false);
    }
    // What makes keys of its own is restored into no more.
    if super::has_key_events_since(first_own_id)? {
        return Ok(true);
    }
    let is_busy = "SELECT fieldcrypt_internal.is_being_restored()";
    let is_busy = spi::first_row(is_busy, &[], |row| row.boolean(1))?.unwrap_or(false);
    let Some(queue) = audit_memory::of_database(session::database()) else { return Ok(false) };
    let now = clock::now();
    if now - queue.quiet_since((!is_busy).then_some(now)).unwrap_or(now) >= RESTORE_PAUSE {
        return Ok(true);
    }
    queue.look_again(now + LOOK_PAUSE);
    Ok(false)
}

fn begin(old: Option<Origin>, here: Here, cause: &str) -> Result<Origin, Error> {
    let frontier = tree::loaded_frontier()?;
    let log = LogId::generate()?;
    let origin = Origin {
        id: log_table::next_log_id()?,
        log,
        place: place(here.0, here.1, here.2),
        at: clock::now(),
        old_size: frontier.size(),
    };
    spi::execute(
        "INSERT INTO fieldcrypt.audit_origins
                (id, log_id, at, system_identifier, database_oid, timeline, old_log_id, old_size,
                 old_root, cause)
         SELECT $1, $2, $3, $4, $5, $6, (
                    SELECT o.log_id FROM fieldcrypt.audit_origins AS o
                     WHERE o.id OPERATOR(pg_catalog.=) $7), $8, $9, $10",
        &[
            Parameter::BigInt(Some(origin.id)),
            Parameter::Bytea(&log.0),
            Parameter::Time(Some(origin.at)),
            Parameter::BigInt(Some(here.0)),
            Parameter::BigInt(Some(here.1)),
            Parameter::BigInt(Some(here.2)),
            Parameter::BigInt(old.as_ref().map(|old| old.id)),
            Parameter::BigInt(Some(frontier.size() as i64)),
            Parameter::Bytea(&frontier.root()),
            Parameter::Text(Some(cause.as_bytes())),
        ],
    )?;
    let from = old.map_or(String::new(), |old| format!(", goes on from log {}", old.log));
    let reason = format!(
        "log {log}{from} at size {}, root {}: {cause}",
        frontier.size(),
        hexadecimal(&frontier.root())
    );
    // The same to the microsecond, however long the process was stopped between.
    super::record_reason(Event::AuditOriginBegun, &reason, origin.at)?;
    Ok(origin)
}

/// The last origin, and its place as the table says it.
fn last() -> Result<Option<(Origin, Here)>, Error> {
    spi::first_row(
        "SELECT o.id, o.log_id, o.at, o.system_identifier, o.database_oid, o.timeline, o.old_size
           FROM fieldcrypt.audit_origins AS o ORDER BY o.id DESC LIMIT 1",
        &[],
        |row| {
            let here = (row.bigint(4)?, row.bigint(5)?, row.bigint(6)?);
            let origin = Origin {
                id: row.bigint(1)?,
                log: LogId(row.sixteen_bytes(2)?),
                at: row.bigint(3)?,
                place: place(here.0, here.1, here.2),
                old_size: row.bigint(7)?.max(0) as u64,
            };
            Ok((origin, here))
        },
    )
}

fn here() -> Result<Here, Error> {
    if let Some(here) = HERE.get() {
        return Ok(here);
    }
    let found = spi::first_row(
        "SELECT h.system_identifier, h.database_oid, h.timeline FROM fieldcrypt_internal.origin_here() AS h",
        &[],
        |row| Ok((row.bigint(1)?, row.bigint(2)?, row.bigint(3)?)),
    )?;
    HERE.set(found);
    found.ok_or_else(|| Error::Internal("a database has no place".into()))
}

/// Somebody says why the log goes on under another name. Gives how many names that concerns.
pub fn acknowledge_fork(reason: &[u8]) -> Result<u64, Error> {
    acknowledge::refuse_without(
        reason,
        "SELECT fieldcrypt.acknowledge_audit_fork('restored from the backup of last night after a disk failure')",
    )?;
    // The place may have changed since this session began.
    HERE.set(None);
    let mut at = 0;
    let acknowledged = security::as_owner(|| {
        log_table::lock_sealing()?;
        let Some(origin) = current()? else {
            return Err(Error::AuditSeal {
                problem: "the audit log of this database is not sealed yet".into(),
                hint: "It is once the database has keys, a minute after a restore has ended.",
            });
        };
        at = clock::now();
        let mut count = acknowledge(reason, at)?;
        if count == 0 {
            let here = here()?;
            begin(Some(origin), here, "an acknowledgement")?;
            at = clock::now();
            count = acknowledge(reason, at)?;
        }
        Ok(count)
    })?;
    if let Some(queue) = audit_memory::of_database(session::database()) {
        queue.forget_sealed();
    }
    let last = security::as_owner(last)?.map(|(origin, _)| origin.log.to_string());
    let told = format!("{} (log {})", encoding::lossy(reason), last.unwrap_or_default());
    let told = encoding::from_utf8(told.as_bytes())?;
    super::record(
        Event::AuditForkAcknowledged,
        &Details {
            reason: Some(&told),
            value_count: Some(acknowledged as i64),
            at: Some(at),
            ..Details::default()
        },
    )?;
    Ok(acknowledged)
}

fn acknowledge(reason: &[u8], at: i64) -> Result<u64, Error> {
    let by = roles::session_user();
    spi::execute(
        "UPDATE fieldcrypt.audit_origins
            SET acknowledged_at = $3, acknowledged_by = $1, acknowledged_reason = $2
          WHERE acknowledged_at IS NULL AND old_log_id IS NOT NULL",
        &[Parameter::Text(Some(&by)), Parameter::Text(Some(reason)), Parameter::Time(Some(at))],
    )
}

/// Where this database is.
fn place(system_identifier: i64, database: i64, timeline: i64) -> Place {
    Place {
        system_identifier: system_identifier as u64,
        database: database as u32,
        timeline: timeline as u32,
    }
}
