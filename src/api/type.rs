//! Type `fieldcrypt.encrypted`: what goes in and out is ciphertext, always.
//!
//! Equality and hashing are of the bytes, so Postgres's own `byteaeq` and `hashvarlena` serve.

use fieldcrypt_envelope::Ciphertext;
use fieldcrypt_envelope::ciphertext;
use pgrx::pg_sys::Datum;

use crate::error::Error;
use crate::pg::call::{Call, sql_functions};
use crate::pg::values::{self, Varlena};

sql_functions! {
    fieldcrypt_encrypted_in, pg_finfo_fieldcrypt_encrypted_in => input;
    fieldcrypt_encrypted_out, pg_finfo_fieldcrypt_encrypted_out => output;
    fieldcrypt_encrypted_recv, pg_finfo_fieldcrypt_encrypted_recv => receive;
    fieldcrypt_encrypted_from_bytea, pg_finfo_fieldcrypt_encrypted_from_bytea => from_bytea;
}

fn input(call: &Call) -> Result<Option<Datum>, Error> {
    let Some(text) = call.c_string(0) else { return Ok(None) };
    let mut value = Varlena::zeroed(ciphertext::length_from_text(text)?)?;
    ciphertext::parse_text(text, value.bytes_mut())?;
    Ok(Some(value.into_datum()))
}

fn output(call: &Call) -> Result<Option<Datum>, Error> {
    let Some(value) = call.bytes(0) else { return Ok(None) };
    let length = ciphertext::text_length(value);
    values::c_string_with(length, |text| ciphertext::write_text(value, text)).map(Some)
}

fn receive(call: &Call) -> Result<Option<Datum>, Error> {
    let Some(value) = call.message_rest(0) else { return Ok(None) };
    Ciphertext::parse(value)?;
    Ok(Some(Varlena::of(value)?.into_datum()))
}

fn from_bytea(call: &Call) -> Result<Option<Datum>, Error> {
    let Some(value) = call.bytes(0) else { return Ok(None) };
    Ciphertext::parse(value)?;
    Ok(Some(Varlena::of(value)?.into_datum()))
}
