//! Type `fieldcrypt.encrypted`: what goes in and out is ciphertext, always.
//!
//! Equality and hashing are of the bytes, so Postgres's own `byteaeq` and `hashvarlena` serve.

use fieldcrypt_envelope::Ciphertext;
use fieldcrypt_envelope::ciphertext;

use super::answer;
use crate::error::Error;
use crate::pg;
use crate::pg::values::{CText, Varlena};

pg::sql_functions! {
    encrypted_in(value: cstring) -> encrypted;
    encrypted_out(value: encrypted) -> cstring;
    encrypted_recv(value: internal) -> encrypted;
    encrypted_from_bytea(value: bytea) -> encrypted;
}

fn encrypted_in(text: Option<&[u8]>) -> Result<Option<Varlena>, Error> {
    let Some(text) = text else { return Ok(None) };
    let mut value = Varlena::zeroed(ciphertext::length_from_text(text)?)?;
    ciphertext::parse_text(text, value.bytes_mut())?;
    Ok(Some(value))
}

fn encrypted_out(value: Option<&[u8]>) -> Result<Option<CText>, Error> {
    let Some(value) = value else { return Ok(None) };
    let length = ciphertext::text_length(value);
    CText::filled(length, |text| ciphertext::write_text(value, text)).map(Some)
}

fn encrypted_recv(value: Option<&[u8]>) -> Result<Option<Varlena>, Error> {
    encrypted_from_bytea(value)
}

fn encrypted_from_bytea(value: Option<&[u8]>) -> Result<Option<Varlena>, Error> {
    let Some(value) = value else { return Ok(None) };
    Ciphertext::parse(value)?;
    answer(value)
}
