//! The event trigger that comes before anything is dropped.

use crate::error::Error;
use crate::pg::drops::EventTriggerCall;

crate::pg::sql_functions! {
    event_trigger guard_drops;
}

/// Has the library loaded, which sees each object that is dropped.
fn guard_drops(trigger: &EventTriggerCall) -> Result<(), Error> {
    trigger.claim_what_is_owned();
    Ok(())
}
