//! The trigger that `audit_table` puts on a user's table.

use pgrx::pg_sys::Datum;

use crate::audit::{row_trigger, table_notes};
use crate::error::Error;
use crate::pg::triggers::{Operation, TriggerCall};

crate::pg::sql_functions! {
    trigger audit_change;
    remember_table_audit(target: bigint!, triggers: bigint!) -> void;
    remembered_table_audit(target: bigint!) -> bigint;
}

/// Only what has happened is recorded: before a row, or instead of one, nothing has, and a statement may have
/// changed none.
fn audit_change(trigger: &TriggerCall) -> Result<Option<Datum>, Error> {
    let is_truncate = trigger.operation() == Operation::Truncate;
    if !trigger.is_after() || trigger.is_for_each_row() == is_truncate {
        return Err(Error::NotAnAfterTrigger);
    }
    row_trigger::record_change(trigger)?;
    Ok(Some(Datum::null()))
}

fn remember_table_audit(target: i64, triggers: i64) -> Result<(), Error> {
    table_notes::remember(target, triggers);
    Ok(())
}

/// -1 for nothing.
fn remembered_table_audit(target: i64) -> Result<i64, Error> {
    Ok(table_notes::take(target).unwrap_or(-1))
}
