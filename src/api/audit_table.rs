//! The trigger that `audit_table` puts on a user's table.

use pgrx::pg_sys::Datum;

use crate::audit::row_trigger;
use crate::error::Error;
use crate::pg::triggers::TriggerCall;

crate::pg::sql_functions! {
    trigger audit_change;
}

fn audit_change(trigger: &TriggerCall) -> Result<Option<Datum>, Error> {
    if !trigger.is_after() {
        return Err(Error::NotAnAfterTrigger);
    }
    row_trigger::record_change(trigger)?;
    Ok(Some(Datum::null()))
}
