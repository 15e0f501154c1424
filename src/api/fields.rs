//! `encrypt_field`, `decrypt_field` and their siblings, `reencrypt_field`, and what a value's header says.

use std::borrow::Cow;

use fieldcrypt_envelope::ciphertext::{self, OVERHEAD, PLAINTEXT_OFFSET};
use fieldcrypt_envelope::parse_any_text;
use fieldcrypt_envelope::{
    AnyCiphertext, BoundCiphertext, Ciphertext, Context, Expected, Form, KeyId, Kind,
};
use pgrx::pg_sys::{self, Datum, Oid};

use crate::error::Error;
use crate::keyring::ALGORITHM;
use crate::pg::json::Jsonb;
use crate::pg::sql::Record;
use crate::pg::text_forms::AnyValue;
use crate::pg::text_input;
use crate::pg::values::Varlena;
use crate::pg::{encoding, plaintexts, security, session};
use crate::{fields, pg, usage};

pg::sql_functions! {
    encrypt_field(value: text, context: text, tenant: text) -> encrypted;
    encrypt_field_bytea(value: bytea, context: text, tenant: text) -> encrypted;
    encrypt_field_jsonb(value: jsonb, context: text, tenant: text) -> encrypted;
    encrypt_field_as(value: any_value!, context: text, tenant: text) -> encrypted;
    decrypt_field(value: encrypted, context: text) -> text;
    decrypt_field_bytea(value: encrypted, context: text) -> bytea;
    decrypt_field_jsonb(value: encrypted, context: text) -> jsonb;
    decrypt_field_as(value: encrypted, type_of: anyelement!, context: text) -> anyelement;
    try_decrypt_field(value: encrypted, context: text) -> text;
    reencrypt_field(value: encrypted, context: text) -> encrypted;
    rebind_field(value: encrypted, context: text, new_context: text) -> encrypted;
    key_id(value: encrypted!) -> bigint;
    ciphertext_info(value: encrypted!) -> record;
}

type Bytes<'c> = Option<&'c [u8]>;

fn encrypt_field(text: Bytes, context: Bytes, tenant: Bytes) -> Result<Option<Varlena>, Error> {
    let Some(text) = text else { return Ok(None) };
    encrypt_text(text, context, tenant)
}

/// Any type, as its output function writes it, whatever the session's settings.
fn encrypt_field_as(
    value: AnyValue,
    context: Bytes,
    tenant: Bytes,
) -> Result<Option<Varlena>, Error> {
    let Some(text) = value.text() else { return Ok(None) };
    encrypt_text(text, context, tenant)
}

#[inline]
fn encrypt_text(text: &[u8], context: Bytes, tenant: Bytes) -> Result<Option<Varlena>, Error> {
    refuse_ciphertext(text)?;
    encrypt(&encoding::to_utf8(text)?, context, tenant)
}

/// A value that is encrypted twice is found when it is read: ciphertext comes out. Texts that only begin like
/// ciphertext are texts.
#[inline]
fn refuse_ciphertext(text: &[u8]) -> Result<(), Error> {
    if text.starts_with(ciphertext::TEXT_PREFIX.as_bytes()) && is_ciphertext(text)? {
        return Err(Error::AlreadyEncrypted);
    }
    Ok(())
}

fn is_ciphertext(text: &[u8]) -> Result<bool, Error> {
    let Ok(length) = ciphertext::length_from_text(text) else { return Ok(false) };
    let mut value = Varlena::zeroed(length)?;
    let result = parse_any_text(text, value.bytes_mut()).is_ok();
    value.discard();
    Ok(result)
}

fn encrypt_field_bytea(
    bytes: Bytes,
    context: Bytes,
    tenant: Bytes,
) -> Result<Option<Varlena>, Error> {
    let Some(bytes) = bytes else { return Ok(None) };
    encrypt(bytes, context, tenant)
}

fn encrypt_field_jsonb(
    document: Option<Jsonb>,
    context: Bytes,
    tenant: Bytes,
) -> Result<Option<Varlena>, Error> {
    let Some(document) = document else { return Ok(None) };
    let text = document.to_text();
    if let Some(string) = text.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")) {
        refuse_ciphertext(string)?;
    }
    encrypt(&encoding::to_utf8(text)?, context, tenant)
}

#[inline]
fn encrypt(plaintext: &[u8], context: Bytes, tenant: Bytes) -> Result<Option<Varlena>, Error> {
    let tenant = fields::tenant_of_call(given(tenant, "tenant")?)?;
    with_context(context, |context| {
        let length = plaintext.len() + OVERHEAD;
        let mut value = Varlena::around(length, PLAINTEXT_OFFSET, plaintext)?;
        fields::seal(tenant, context, value.bytes_mut())?;
        Ok(Some(value))
    })
}

fn decrypt_field(value: Bytes, context: Bytes) -> Result<Option<Varlena>, Error> {
    recorded(value, |value| as_text(value, context))
}

fn decrypt_field_bytea(value: Bytes, context: Bytes) -> Result<Option<Varlena>, Error> {
    recorded(value, |value| {
        let Some((form, mut plaintext)) = decrypt(value, context)? else { return Ok(None) };
        match form {
            None => Ok(Some(plaintext)),
            // What is no text in itself is given as one, as decrypt_field gives it.
            Some(form) => {
                let text = plaintexts::as_text(form, plaintext.bytes_mut())?;
                Varlena::of(&encoding::to_utf8(&text)?).map(Some)
            }
        }
    })
}

fn decrypt_field_jsonb(value: Bytes, context: Bytes) -> Result<Option<Datum>, Error> {
    recorded(value, |value| into_type(value, context, pg_sys::JSONBOID))
}

/// The type is that of the second argument, whose value does not matter.
fn decrypt_field_as(value: Bytes, type_of: Oid, context: Bytes) -> Result<Option<Datum>, Error> {
    recorded(value, |value| into_type(value, context, type_of))
}

/// For finding damage: NULL where the value or its key is broken or gone. What the caller can mend
/// stays an error, and so does a value that is authentic but no text.
fn try_decrypt_field(value: Bytes, context: Bytes) -> Result<Option<Varlena>, Error> {
    let Some(bytes) = value else { return Ok(None) };
    match as_text(bytes, context) {
        Err(error) if error.is_damage() => {
            let value = AnyCiphertext::parse(bytes).ok();
            usage::note_null(&error, value.map(|value| value.key_id()))?;
            Ok(None)
        }
        result => recorded(value, |_| result),
    }
}

fn reencrypt_field(value: Bytes, context: Bytes) -> Result<Option<Varlena>, Error> {
    recorded(value, |value| {
        if let AnyCiphertext::Bound(_) = AnyCiphertext::parse(value)? {
            return match given(context, "context")? {
                b"" => fields::reencrypt_bound(value, Expected::Any),
                place => {
                    let place = encoding::to_string(place)?;
                    fields::reencrypt_bound(value, Expected::Place(&place))
                }
            }
            .map(Some);
        }
        with_context(context, |context| fields::reencrypt(value, context).map(Some))
    })
}

/// For who may do both: it would be decrypting and encrypting, and shows nothing.
fn rebind_field(value: Bytes, context: Bytes, new: Bytes) -> Result<Option<Varlena>, Error> {
    recorded(value, |value| {
        security::refuse_unless_executable(fields::DECRYPT, "decrypt")?;
        security::refuse_unless_executable(fields::ENCRYPT, "encrypt")?;
        if let AnyCiphertext::Bound(_) = AnyCiphertext::parse(value)? {
            return Err(Error::NotRebindable);
        }
        with_context(context, |context| {
            fields::with_context(given(new, "new_context")?, |new| {
                fields::rebind(value, context, new).map(Some)
            })
        })
    })
}

fn key_id(value: &[u8]) -> Result<KeyId, Error> {
    Ok(AnyCiphertext::parse(value)?.key_id())
}

fn ciphertext_info(value: &[u8]) -> Result<Record, Error> {
    let value = AnyCiphertext::parse(value)?;
    let nonce = match &value {
        AnyCiphertext::Field(value) => *value.nonce(),
        AnyCiphertext::Bound(value) => value.header().nonce,
    };
    Ok(Record::of([
        Varlena::of(b"fc1")?.into_datum(),
        Varlena::of(ALGORITHM)?.into_datum(),
        Datum::from(value.key_id().as_i64()),
        Varlena::of(nonce.as_bytes())?.into_datum(),
        Datum::from(value.body().len() as i32),
    ]))
}

/// Runs `body` on a value, if there is one. Its failure is recorded although the transaction may roll back.
#[inline]
fn recorded<R>(
    value: Bytes,
    body: impl FnOnce(&[u8]) -> Result<Option<R>, Error>,
) -> Result<Option<R>, Error> {
    let Some(value) = value else { return Ok(None) };
    body(value).map_err(|error| usage::decrypt_failed(value, error))
}

#[inline]
fn as_text(value: &[u8], context: Bytes) -> Result<Option<Varlena>, Error> {
    let Some((form, mut plaintext)) = decrypt(value, context)? else { return Ok(None) };
    let text = match form {
        None => encoding::from_utf8(plaintext.bytes_mut())?,
        Some(form) if plaintexts::type_of(form) == pg_sys::TEXTOID => {
            encoding::from_utf8(plaintext.bytes_mut())?
        }
        Some(form) => {
            return Varlena::of(&plaintexts::as_text(form, plaintext.bytes_mut())?).map(Some);
        }
    };
    match text {
        Cow::Owned(converted) => Varlena::of(&converted).map(Some),
        Cow::Borrowed(_) => Ok(Some(plaintext)),
    }
}

fn into_type(value: &[u8], context: Bytes, type_oid: Oid) -> Result<Option<Datum>, Error> {
    let Some((form, mut plaintext)) = decrypt(value, context)? else { return Ok(None) };
    if let Some(form) = form {
        return plaintexts::in_type(form, plaintext.bytes_mut(), type_oid).map(Some);
    }
    let text = encoding::from_utf8(plaintext.bytes_mut())?;
    text_input::text_in_type(&text, type_oid).map(Some)
}

#[inline]
fn decrypt(bytes: &[u8], context: Bytes) -> Result<Option<(Option<Form>, Varlena)>, Error> {
    security::refuse_if_security_restricted()?;
    let named = given(context, "context")?;
    if bytes.get(1).is_some_and(|suite| *suite != ciphertext::SUITE_XAES_256_GCM) {
        return decrypt_bound(&BoundCiphertext::parse(bytes)?, named).map(Some);
    }
    fields::with_context(named, |context| {
        let value = Ciphertext::parse(bytes)?;
        let mut plaintext = Varlena::of(value.body())?;
        fields::open(&value, context, named, plaintext.bytes_mut())?;
        Ok(Some((None, plaintext)))
    })
}

/// A value that is bound to its row, whose place is named; or a loose one, which has none, of this session or for who may
/// encrypt and decrypt.
fn decrypt_bound(
    value: &BoundCiphertext<'_>,
    named: &[u8],
) -> Result<(Option<Form>, Varlena), Error> {
    let mut plaintext = Varlena::of(value.body())?;
    let header = value.header();
    let place = encoding::to_string(named)?;
    let session = session::of_loose_values();
    let expected = match header.kind() {
        _ if !named.is_empty() => Expected::Place(&place),
        Kind::Loose
            if !header.is_expected(Expected::Session(&session))
                && security::may(fields::ENCRYPT) =>
        {
            Expected::Any
        }
        Kind::Loose | Kind::Bound | Kind::Searchable => Expected::Session(&session),
    };
    fields::open_bound(value, expected, named, plaintext.bytes_mut())?;
    Ok((Some(header.form), plaintext))
}

fn with_context<R>(
    context: Bytes,
    work: impl FnOnce(&Context<'_>) -> Result<R, Error>,
) -> Result<R, Error> {
    fields::with_context(given(context, "context")?, work)
}

/// NULL is more often a slip than a wish. But a NULL value wins: outer joins give both.
fn given<'c>(argument: Bytes<'c>, name: &'static str) -> Result<&'c [u8], Error> {
    argument.ok_or(Error::NullArgument(name))
}
