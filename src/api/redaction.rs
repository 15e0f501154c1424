//! Whether the server log is redacted.

use crate::error::Error;
use crate::redaction;

crate::pg::sql_functions! {
    redaction_is_active() -> boolean;
}

fn redaction_is_active() -> Result<bool, Error> {
    Ok(redaction::is_active())
}
