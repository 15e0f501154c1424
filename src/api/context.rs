//! The text that a value is bound to, made of a name and the values of a row's key.

use fieldcrypt_envelope::{MAX_SHORT_BYTES, Part, place};

use crate::error::Error;
use crate::fields::MAX_CONTEXT_BYTES;
use crate::pg::key_values::KeyValues;
use crate::pg::reserve;

crate::pg::sql_functions! {
    context(parts: any!) -> text;
}

fn context(values: KeyValues<'_>) -> Result<Vec<u8>, Error> {
    let parts = values.parts()?;
    match parts.first() {
        Some(Part::Text(name)) if !name.is_empty() => {}
        _ => return Err(Error::ContextName),
    }
    // Only texts and numerics can be long: most contexts need no room.
    let is_long = |part: &Part<'_>| match part {
        Part::Text(text) | Part::Numeric(text) => text.len() > LONG,
        _ => false,
    };
    if parts.iter().any(is_long) {
        reserve::room(MAX_CONTEXT_BYTES + parts.len() * MAX_SHORT_BYTES, "a context")?;
    }
    place(&parts, MAX_CONTEXT_BYTES).ok_or(Error::TooLong { what: "a context", most: "1 MB" })
}

/// A call has a hundred parts at most.
const LONG: usize = 200;
