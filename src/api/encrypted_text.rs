//! Type `fieldcrypt.encrypted_text`: plaintext may come in, and nothing but ciphertext is ever of the type.

use std::convert::Infallible;

use fieldcrypt_envelope::ciphertext::{TEXT_PREFIX, text_length, write_text};
use fieldcrypt_envelope::{AnyCiphertext, Binding, Form, Header, KeyId};
use pgrx::pg_sys::Oid;

use super::types::parsed_text;
use crate::error::{Error, Misuse};
use crate::pg::text_forms::AnyValue;
use crate::pg::values::{CText, Varlena};
use crate::pg::{encoding, plaintexts};
use crate::{columns, fields, usage};

crate::pg::sql_functions! {
    encrypted_text_in(value: input_text!) -> encrypted_text;
    encrypted_text_out(value: encrypted_text!) -> cstring;
    encrypted_text_recv(value: internal_text!) -> encrypted_text = taken_in;
    encrypted_text_send(value: encrypted_text!) -> bytea;
    encrypted_text_from(value: anything!) -> encrypted_text;
    refuse_encrypted_text(value: encrypted_text) -> text;
    refuse_encrypted_name(value: encrypted_text) -> name = refuse_encrypted_text;
    loosen(value: encrypted!, place: text) -> encrypted_text;
    is_loose(value: encrypted_header!) -> boolean;
    key_of_text(value: text!) -> bigint;
    create_loose_key() -> bigint = columns::create_loose_key;
}

/// Where Postgres casts a value of another type by its text, that type counts: not each text is one that lasts.
fn encrypted_text_in((text, cast_from): (&[u8], Option<Oid>)) -> Result<Option<Varlena>, Error> {
    if let Some(type_oid) = cast_from
        && !plaintexts::is_written_as_text(type_oid)
    {
        return Err(plaintexts::not_one(type_oid));
    }
    taken_in(text)
}

/// A text in the database's encoding: ciphertext in its text form is what it is, anything else is plaintext.
fn taken_in(text: &[u8]) -> Result<Option<Varlena>, Error> {
    if text.starts_with(TEXT_PREFIX.as_bytes()) {
        return parsed_text(text).map(Some);
    }
    fields::seal_loose(Form::Text, &encoding::to_utf8(text)?).map(Some)
}

fn encrypted_text_out(value: &[u8]) -> Result<Option<CText>, Error> {
    CText::filled(text_length(value), |text| write_text(value, text)).map(Some)
}

/// Binary is text here, so that what is sent can be told from plaintext when it comes back.
fn encrypted_text_send(value: &[u8]) -> Result<Option<Varlena>, Error> {
    let mut text = Varlena::zeroed(text_length(value))?;
    write_text(value, text.bytes_mut());
    Ok(Some(text))
}

/// Of the types whose plaintexts have a form of their own, and of texts.
fn encrypted_text_from(value: AnyValue) -> Result<Option<Varlena>, Error> {
    value.with_plaintext(|form, plaintext| match form {
        Form::Text if plaintext.starts_with(TEXT_PREFIX.as_bytes()) => parsed_text(plaintext),
        form => fields::seal_loose(form, plaintext),
    })
}

fn refuse_encrypted_text<A>(_: A) -> Result<Infallible, Error> {
    Err(Error::Misuse(Misuse::Text))
}

fn loosen(value: &[u8], place: Option<&[u8]>) -> Result<Option<Varlena>, Error> {
    columns::loosen(value, place.ok_or(Error::NullArgument("place"))?)
        .map(Some)
        .map_err(|error| usage::decrypt_failed(value, error))
}

/// The key of a ciphertext in its text form; NULL for what is none.
fn key_of_text(text: &[u8]) -> Result<Option<KeyId>, Error> {
    let Ok(mut value) = parsed_text(text) else { return Ok(None) };
    Ok(AnyCiphertext::parse(value.bytes_mut()).ok().map(|value| value.key_id()))
}

fn is_loose(header: &[u8]) -> Result<bool, Error> {
    Ok(Header::parse(header).is_ok_and(|header| matches!(header.binding, Binding::Loose(_))))
}
