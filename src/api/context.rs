//! The text that a value is bound to, made of a name and the values of a row's key.

use fieldcrypt_envelope::{Part, place};

use crate::error::Error;
use crate::pg::key_values::KeyValues;

crate::pg::sql_functions! {
    context(parts: any!) -> text;
}

fn context(values: KeyValues<'_>) -> Result<Vec<u8>, Error> {
    let parts = values.parts()?;
    match parts.first() {
        Some(Part::Text(name)) if !name.is_empty() => Ok(place(&parts)),
        _ => Err(Error::ContextName),
    }
}
