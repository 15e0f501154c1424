//! Whether the log is sealed here, and whether who seals it had the chance.
//!
//! Rows get their leaves, and leaves their checkpoint, a moment after the transactions that wrote them, and
//! that moment may be long: nobody used the database since the server started, or a transaction of this
//! morning has just ended. So before anybody is told that something is overdue, the worker is asked.

use std::time::Duration;

use fieldcrypt_audit::verify::Sealing;

use super::super::{origin, settings};
use crate::error::Error;
use crate::events;
use crate::pg::spi::{self, Parameter};
use crate::pg::{audit_memory, clock, transaction};

/// How long the worker is waited for.
const PATIENCE: i64 = 10_000_000;
/// How old what waits for its seal has to be before the worker is asked.
const OVERDUE: i64 = 30_000_000;

/// Whether the log is sealed here. Where it is, and something is overdue, its worker is waited for. As the
/// owner of the tables.
pub fn sealing() -> Result<Sealing, Error> {
    if transaction::is_standby() {
        return Ok(Sealing::StandsStill);
    }
    if !audit_memory::exists() {
        return Ok(Sealing::Nobody);
    }
    if !origin::is_begun_here()? {
        // Who only looks at a copy does not begin anything in it.
        return Ok(Sealing::StandsStill);
    }
    let until = clock::now() + PATIENCE;
    // A transaction with one snapshot would see nothing of it.
    while !transaction::has_one_snapshot() && clock::now() < until && is_overdue()? {
        events::want_worker();
        transaction::nap(Duration::from_millis(50));
    }
    Ok(Sealing::GoesOn)
}

/// Up to when checkpoints are to be expected, in Postgres's time.
pub fn looked_at() -> i64 {
    let seen = if transaction::has_one_snapshot() { transaction::start() } else { clock::now() };
    seen.saturating_sub(settings::seal_interval())
}

fn is_overdue() -> Result<bool, Error> {
    let now = clock::now();
    let found = spi::first_row(
        "SELECT EXISTS (SELECT FROM fieldcrypt.audit_log AS l
                         WHERE l.leaf IS NULL AND l.at OPERATOR(pg_catalog.<) $1
                           AND l.transaction_id IS DISTINCT FROM pg_catalog.pg_current_xact_id_if_assigned())
                OR EXISTS (SELECT FROM fieldcrypt.audit_log AS l
                            WHERE l.leaf OPERATOR(pg_catalog.>=) COALESCE((
                                      SELECT pg_catalog.max(c.size) FROM fieldcrypt.audit_checkpoints AS c), 0)
                              AND l.at OPERATOR(pg_catalog.<) $2)",
        &[
            Parameter::Time(Some(now - OVERDUE)),
            Parameter::Time(Some(now - OVERDUE - settings::seal_interval())),
        ],
        |row| row.boolean(1),
    )?;
    Ok(found.unwrap_or(false))
}
