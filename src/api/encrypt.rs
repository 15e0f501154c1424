//! `encrypt_field` and its siblings.

use fieldcrypt_envelope::ciphertext::{OVERHEAD, PLAINTEXT_OFFSET};
use pgrx::pg_sys::Datum;

use super::{given, with_context};
use crate::error::Error;
use crate::keyring;
use crate::pg::call::{Call, sql_functions};
use crate::pg::values::Varlena;
use crate::pg::{encoding, json};

sql_functions! {
    fieldcrypt_encrypt_field, pg_finfo_fieldcrypt_encrypt_field => encrypt_field;
    fieldcrypt_encrypt_field_bytea, pg_finfo_fieldcrypt_encrypt_field_bytea => encrypt_field_bytea;
    fieldcrypt_encrypt_field_jsonb, pg_finfo_fieldcrypt_encrypt_field_jsonb => encrypt_field_jsonb;
}

fn encrypt_field(call: &Call) -> Result<Option<Datum>, Error> {
    let Some(text) = call.bytes(0) else { return Ok(None) };
    encrypt(call, &encoding::to_utf8(text)?)
}

fn encrypt_field_bytea(call: &Call) -> Result<Option<Datum>, Error> {
    let Some(bytes) = call.bytes(0) else { return Ok(None) };
    encrypt(call, bytes)
}

fn encrypt_field_jsonb(call: &Call) -> Result<Option<Datum>, Error> {
    let Some(document) = call.datum(0) else { return Ok(None) };
    encrypt(call, &encoding::to_utf8(json::to_text(document))?)
}

fn encrypt(call: &Call, plaintext: &[u8]) -> Result<Option<Datum>, Error> {
    let tenant = keyring::tenant_of_call(given(call, 2, "tenant")?)?;
    with_context(call, 1, |context| {
        let length = plaintext.len() + OVERHEAD;
        let mut value = Varlena::around(length, PLAINTEXT_OFFSET, plaintext)?;
        keyring::seal(tenant, context, value.bytes_mut())?;
        Ok(Some(value.into_datum()))
    })
}
