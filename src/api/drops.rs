//! The event trigger that has the library loaded before anything is dropped.

use crate::error::Error;

crate::pg::sql_functions! {
    event_trigger guard_drops;
}

/// Nothing more: what is loaded sees each object that is dropped.
fn guard_drops() -> Result<(), Error> {
    Ok(())
}
