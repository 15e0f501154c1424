//! The triggers of the extension's own tables.

use std::cell::RefCell;

use pgrx::pg_sys::{Datum, Oid};

use crate::audit;
use crate::error::Error;
use crate::pg::call::{Call, sql_functions};
use crate::pg::triggers::TriggerCall;
use crate::pg::{callbacks, catalog, encoding, session};

sql_functions! {
    fieldcrypt_refuse_change, pg_finfo_fieldcrypt_refuse_change => refuse_change;
    fieldcrypt_refuse_restore_over, pg_finfo_fieldcrypt_refuse_restore_over => refuse_restore_over;
    fieldcrypt_refuse_restore_over_log, pg_finfo_fieldcrypt_refuse_restore_over_log => refuse_restore_over_log;
    fieldcrypt_invalidate_keys, pg_finfo_fieldcrypt_invalidate_keys => invalidate_keys;
}

/// BEFORE UPDATE, DELETE and TRUNCATE: only the extension itself passes.
fn refuse_change(call: &Call) -> Result<Option<Datum>, Error> {
    let trigger = trigger(call)?;
    if callbacks::guards_are_open() {
        return Ok(Some(trigger.row_datum().unwrap_or(Datum::null())));
    }
    Err(Error::Guarded { table: encoding::lossy(&trigger.relation_name()) })
}

/// BEFORE INSERT, for each statement: a COPY by pg_restore passes into an empty table only, so that
/// a restore over existing keys is refused before its first row.
fn refuse_restore_over(call: &Call) -> Result<Option<Datum>, Error> {
    refuse_insert_if(call, |trigger| catalog::has_rows(trigger.relation()))
}

/// The same for the audit log. In a new database it may have rows already, written by `audit_table`
/// triggers of tables that were restored before it, and its partitions may follow the keys. So what
/// counts is whether this database has made keys itself, or the partition was restored before.
fn refuse_restore_over_log(call: &Call) -> Result<Option<Datum>, Error> {
    refuse_insert_if(call, |trigger| {
        let first_own_id = catalog::first_own_log_id()?;
        if audit::has_key_events_since(first_own_id)? {
            return Ok(true);
        }
        // The table at the top has no rows of its own.
        Ok(!trigger.is_on_partitioned_table()
            && catalog::has_log_rows_before(trigger.relation(), first_own_id)?)
    })
}

fn refuse_insert_if(
    call: &Call,
    is_in_use: impl FnOnce(&TriggerCall) -> Result<bool, Error>,
) -> Result<Option<Datum>, Error> {
    let trigger = trigger(call)?;
    let relation = trigger.relation();
    let passes = callbacks::guards_are_open()
        || RESTORED_HERE.with_borrow(|tables| tables.contains(&relation));
    if passes {
        return Ok(Some(Datum::null()));
    }
    if is_in_use(&trigger)? {
        return Err(Error::RestoreOverExisting {
            table: encoding::lossy(&trigger.relation_name()),
        });
    }
    RESTORED_HERE.with_borrow_mut(|tables| tables.push(relation));
    Ok(Some(Datum::null()))
}

/// The database has made a key of its own: what is restored from now on would be over it.
pub fn end_restore() {
    RESTORED_HERE.with_borrow_mut(Vec::clear);
}

thread_local! {
    /// Tables that this session may fill: a dump with INSERT commands goes on with more rows.
    static RESTORED_HERE: RefCell<Vec<Oid>> = const { RefCell::new(Vec::new()) };
}

/// AFTER UPDATE and DELETE for each row, and TRUNCATE: tells every session.
fn invalidate_keys(call: &Call) -> Result<Option<Datum>, Error> {
    session::invalidate(trigger(call)?.relation());
    Ok(Some(Datum::null()))
}

fn trigger(call: &Call) -> Result<TriggerCall, Error> {
    TriggerCall::from(call).ok_or(Error::NotATrigger)
}
