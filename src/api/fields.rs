//! `decrypt_field` and its siblings, and `reencrypt_field`.

use fieldcrypt_envelope::Ciphertext;
use pgrx::pg_sys::{self, Datum};

use super::with_context;
use crate::audit::failures;
use crate::error::Error;
use crate::keyring;
use crate::pg::call::{Call, sql_functions};
use crate::pg::values::{self, Varlena};
use crate::pg::{encoding, session};
use crate::usage;

sql_functions! {
    fieldcrypt_decrypt_field, pg_finfo_fieldcrypt_decrypt_field => decrypt_field;
    fieldcrypt_decrypt_field_bytea, pg_finfo_fieldcrypt_decrypt_field_bytea => decrypt_field_bytea;
    fieldcrypt_decrypt_field_jsonb, pg_finfo_fieldcrypt_decrypt_field_jsonb => decrypt_field_jsonb;
    fieldcrypt_decrypt_field_as, pg_finfo_fieldcrypt_decrypt_field_as => decrypt_field_as;
    fieldcrypt_try_decrypt_field, pg_finfo_fieldcrypt_try_decrypt_field => try_decrypt_field;
    fieldcrypt_reencrypt_field, pg_finfo_fieldcrypt_reencrypt_field => reencrypt_field;
}

fn decrypt_field(call: &Call) -> Result<Option<Datum>, Error> {
    recorded(call, as_text)
}

fn decrypt_field_bytea(call: &Call) -> Result<Option<Datum>, Error> {
    recorded(call, |call| Ok(decrypt(call, 1)?.map(Varlena::into_datum)))
}

fn decrypt_field_jsonb(call: &Call) -> Result<Option<Datum>, Error> {
    recorded(call, |call| into_type(call, 1, pg_sys::JSONBOID))
}

/// The type is that of the second argument, whose value does not matter.
fn decrypt_field_as(call: &Call) -> Result<Option<Datum>, Error> {
    recorded(call, |call| into_type(call, 2, call.argument_type(1)))
}

/// For finding damage: NULL where the value or its key is broken or gone. What the caller can mend
/// stays an error, and so does a value that is authentic but no text.
fn try_decrypt_field(call: &Call) -> Result<Option<Datum>, Error> {
    match as_text(call) {
        Err(error) if error.is_damage() => {
            let value = call.bytes(0).and_then(|bytes| Ciphertext::parse(bytes).ok());
            usage::note_null(error, value.map(|value| value.key_id()))?;
            Ok(None)
        }
        result => recorded(call, |_| result),
    }
}

fn reencrypt_field(call: &Call) -> Result<Option<Datum>, Error> {
    recorded(call, |call| {
        let Some(bytes) = call.bytes(0) else { return Ok(None) };
        with_context(call, 1, |context| Ok(Some(keyring::reencrypt(bytes, context)?.into_datum())))
    })
}

/// Runs `body`, whose failure is recorded although the transaction may roll back.
#[inline]
fn recorded(
    call: &Call,
    body: impl FnOnce(&Call) -> Result<Option<Datum>, Error>,
) -> Result<Option<Datum>, Error> {
    body(call).map_err(|error| failures::decrypt_failed(call.bytes(0).unwrap_or_default(), error))
}

fn as_text(call: &Call) -> Result<Option<Datum>, Error> {
    let Some(mut plaintext) = decrypt(call, 1)? else { return Ok(None) };
    match encoding::from_utf8(plaintext.bytes_mut())? {
        std::borrow::Cow::Owned(converted) => Ok(Some(Varlena::of(&converted)?.into_datum())),
        std::borrow::Cow::Borrowed(_) => Ok(Some(plaintext.into_datum())),
    }
}

fn into_type(
    call: &Call,
    context_index: usize,
    type_oid: pg_sys::Oid,
) -> Result<Option<Datum>, Error> {
    let Some(mut plaintext) = decrypt(call, context_index)? else { return Ok(None) };
    let text = encoding::from_utf8(plaintext.bytes_mut())?;
    values::text_in_type(&text, type_oid).map(Some)
}

#[inline]
fn decrypt(call: &Call, context_index: usize) -> Result<Option<Varlena>, Error> {
    let Some(bytes) = call.bytes(0) else { return Ok(None) };
    session::refuse_if_security_restricted()?;
    with_context(call, context_index, |context| {
        let value = Ciphertext::parse(bytes)?;
        let mut plaintext = Varlena::of(value.body())?;
        keyring::open(&value, context, plaintext.bytes_mut())?;
        Ok(Some(plaintext))
    })
}
