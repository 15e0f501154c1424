//! The log as a table: the triggers of the extension's own tables, and the rows that SQL writes.

use fieldcrypt_envelope::KeyId;
use pgrx::pg_sys::Datum;

use crate::audit::{self, Details};
use crate::error::Error;
use crate::events::Event;
use crate::keyring::guard;
use crate::pg::triggers::TriggerCall;
use crate::pg::{encoding, log_table, roles, scan, security};

crate::pg::sql_functions! {
    trigger refuse_change;
    trigger refuse_restore_over;
    trigger refuse_restore_over_log;
    outer_role() -> text;
    record(event: words!, tenant: words, key_id: key_id, reason: words, table_name: words) -> void;
}

/// BEFORE UPDATE, DELETE and TRUNCATE: only the extension itself passes.
fn refuse_change(trigger: &TriggerCall) -> Result<Option<Datum>, Error> {
    if security::guards_are_open() {
        return Ok(Some(trigger.row_datum().unwrap_or(Datum::null())));
    }
    Err(Error::Guarded { table: encoding::lossy(&trigger.relation_name()) })
}

/// BEFORE INSERT, for each statement: a COPY by pg_restore passes into an empty table only, so that
/// a restore over existing keys is refused before its first row.
fn refuse_restore_over(trigger: &TriggerCall) -> Result<Option<Datum>, Error> {
    guard::refuse_insert_if(trigger, |trigger| scan::has_rows(trigger.relation()))?;
    Ok(Some(Datum::null()))
}

/// The same for the audit log. In a new database it may have rows already, written by `audit_table`
/// triggers of tables that were restored before it, and its partitions may follow the keys. So what
/// counts is whether this database has made keys itself, or the partition was restored before.
fn refuse_restore_over_log(trigger: &TriggerCall) -> Result<Option<Datum>, Error> {
    guard::refuse_insert_if(trigger, |trigger| {
        let first_own_id = log_table::first_own_log_id()?;
        if audit::has_key_events_since(first_own_id)? {
            return Ok(true);
        }
        // The table at the top has no rows of its own.
        Ok(!trigger.is_on_partitioned_table()
            && log_table::has_log_rows_before(trigger.relation(), first_own_id)?)
    })?;
    Ok(Some(Datum::null()))
}

fn outer_role() -> Result<Vec<u8>, Error> {
    Ok(roles::outer_role())
}

/// For what only the functions of `sql/` know of.
fn record(
    event: &[u8],
    tenant: Option<&[u8]>,
    key_id: Option<KeyId>,
    reason: Option<&[u8]>,
    table_name: Option<&[u8]>,
) -> Result<(), Error> {
    security::refuse_for_planted_code()?;
    let event = Event::parse(event).ok_or(Error::UnknownEvent)?;
    audit::record(event, &Details { tenant, key_id, reason, table_name, ..Details::default() })
}
