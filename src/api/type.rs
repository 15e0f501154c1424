//! Type `fieldcrypt.encrypted`: what goes in and out is ciphertext, always.
//!
//! Equality and hashing are of the bytes, so Postgres's own `byteaeq` and `hashvarlena` serve.

use std::convert::Infallible;

use fieldcrypt_envelope::{AnyCiphertext, ciphertext, parse_any_text};
use pgrx::pg_sys::Oid;

use crate::error::{Error, Misuse};
use crate::pg::values::{CText, Varlena};

crate::pg::sql_functions! {
    encrypted_in(value: cstring!) -> encrypted;
    encrypted_out(value: encrypted!) -> cstring;
    encrypted_recv(value: internal!) -> encrypted = parsed;
    encrypted_from_bytea(value: bytea!) -> encrypted = parsed;
    ciphertext_text(value: encrypted!) -> text;
    refuse_index(value_type: oid) -> boolean;
}

fn encrypted_in(text: &[u8]) -> Result<Option<Varlena>, Error> {
    parsed_text(text).map(Some)
}

fn encrypted_out(value: &[u8]) -> Result<Option<CText>, Error> {
    let length = ciphertext::text_length(value);
    CText::filled(length, |text| ciphertext::write_text(value, text)).map(Some)
}

fn ciphertext_text(value: &[u8]) -> Result<Option<Varlena>, Error> {
    let mut text = Varlena::zeroed(ciphertext::text_length(value))?;
    ciphertext::write_text(value, text.bytes_mut());
    Ok(Some(text))
}

/// Asked of a b-tree operator class when an index is built, and never else.
fn refuse_index(_: Option<Oid>) -> Result<Infallible, Error> {
    Err(Error::Misuse(Misuse::Index))
}

fn parsed(value: &[u8]) -> Result<Option<Varlena>, Error> {
    AnyCiphertext::parse(value)?;
    Varlena::of(value).map(Some)
}

/// The value whose text form this is.
pub(super) fn parsed_text(text: &[u8]) -> Result<Varlena, Error> {
    let mut value = Varlena::zeroed(ciphertext::length_from_text(text)?)?;
    parse_any_text(text, value.bytes_mut())?;
    Ok(value)
}
