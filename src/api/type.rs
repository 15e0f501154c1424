//! Type `fieldcrypt.encrypted`: what goes in and out is ciphertext, always.
//!
//! Equality and hashing are of the bytes, so Postgres's own `byteaeq` and `hashvarlena` serve.

use fieldcrypt_envelope::Ciphertext;
use fieldcrypt_envelope::ciphertext;

use crate::error::Error;
use crate::pg::values::{CText, Varlena};

crate::pg::sql_functions! {
    encrypted_in(value: cstring!) -> encrypted;
    encrypted_out(value: encrypted!) -> cstring;
    encrypted_recv(value: internal!) -> encrypted = parsed;
    encrypted_from_bytea(value: bytea!) -> encrypted = parsed;
}

fn encrypted_in(text: &[u8]) -> Result<Option<Varlena>, Error> {
    let mut value = Varlena::zeroed(ciphertext::length_from_text(text)?)?;
    ciphertext::parse_text(text, value.bytes_mut())?;
    Ok(Some(value))
}

fn encrypted_out(value: &[u8]) -> Result<Option<CText>, Error> {
    let length = ciphertext::text_length(value);
    CText::filled(length, |text| ciphertext::write_text(value, text)).map(Some)
}

fn parsed(value: &[u8]) -> Result<Option<Varlena>, Error> {
    Ciphertext::parse(value)?;
    Varlena::of(value).map(Some)
}
