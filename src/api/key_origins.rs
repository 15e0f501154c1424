//! Where the keys are.

use crate::error::Error;
use crate::pg::security;
use crate::pg::spi::{self, Parameter};

crate::pg::sql_functions! {
    record_origin(is_confirmed: boolean, reason: words!) -> void;
}

/// Notes it.
fn record_origin(is_confirmed: Option<bool>, reason: &[u8]) -> Result<u64, Error> {
    let is_confirmed = i32::from(is_confirmed.unwrap_or(false));
    security::as_owner(|| {
        spi::execute(
            "SELECT fieldcrypt_internal.write_origin($1 OPERATOR(pg_catalog.=) 1, $2)",
            &[Parameter::Integer(is_confirmed), Parameter::Text(Some(reason))],
        )
    })
}
