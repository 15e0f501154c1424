//! Functions about keys and values that neither encrypt nor decrypt.

use fieldcrypt_envelope::{Ciphertext, KeyId};
use pgrx::pg_sys::Datum;
use serde_json::{Value, json};

use super::given;
use crate::error::Error;
use crate::keyring::{self, Rotation};
use crate::master_key;
use crate::pg::call::{Call, sql_functions};
use crate::pg::values::{self, Varlena};
use crate::pg::{json, session};

sql_functions! {
    fieldcrypt_key_id, pg_finfo_fieldcrypt_key_id => key_id;
    fieldcrypt_ciphertext_info, pg_finfo_fieldcrypt_ciphertext_info => ciphertext_info;
    fieldcrypt_create_key, pg_finfo_fieldcrypt_create_key => create_key;
    fieldcrypt_rotate_key, pg_finfo_fieldcrypt_rotate_key => rotate_key;
    fieldcrypt_refuse_unless_writable, pg_finfo_fieldcrypt_refuse_unless_writable => refuse_unless_writable;
    fieldcrypt_loaded_master_keys, pg_finfo_fieldcrypt_loaded_master_keys => loaded_master_keys;
}

fn key_id(call: &Call) -> Result<Option<Datum>, Error> {
    let Some(bytes) = call.bytes(0) else { return Ok(None) };
    Ok(Some(Datum::from(Ciphertext::parse(bytes)?.key_id().as_i64())))
}

fn ciphertext_info(call: &Call) -> Result<Option<Datum>, Error> {
    let Some(bytes) = call.bytes(0) else { return Ok(None) };
    let value = Ciphertext::parse(bytes)?;
    let mut columns = [
        Varlena::of(b"fc1")?.into_datum(),
        Varlena::of(keyring::ALGORITHM)?.into_datum(),
        Datum::from(value.key_id().as_i64()),
        Varlena::of(value.nonce().as_bytes())?.into_datum(),
        Datum::from(value.plaintext_length() as i32),
    ];
    values::composite(call, &mut columns).map(Some)
}

fn create_key(call: &Call) -> Result<Option<Datum>, Error> {
    let tenant = keyring::tenant_of_call(given(call, 0, "tenant")?)?;
    Ok(Some(Datum::from(keyring::ensure_active(tenant)?.as_i64())))
}

/// One step of `rotate_keys`, which holds the loop and the commits.
fn rotate_key(call: &Call) -> Result<Option<Datum>, Error> {
    let tenant = given(call, 0, "tenant")?;
    let reason = call.bytes(1);
    let expected = call.key_id(3);
    let rotation = match expected {
        Some(expected) => keyring::rotate_if_active(tenant, reason, expected)?,
        None => Some(keyring::rotate(tenant, reason, call.boolean(2).unwrap_or(false))?),
    };
    let (old, new) = match rotation {
        Some(Rotation { old, new }) => (old.map_or(0, KeyId::as_i64), new.as_i64()),
        None => (0, 0),
    };
    values::composite(call, &mut [Datum::from(old), Datum::from(new)]).map(Some)
}

fn refuse_unless_writable(_: &Call) -> Result<Option<Datum>, Error> {
    session::refuse_unless_writable()?;
    Ok(Some(Datum::null()))
}

/// What this session has loaded, as JSON: `master_key_status()` joins it with what the database needs.
fn loaded_master_keys(_: &Call) -> Result<Option<Datum>, Error> {
    let status = match master_key::status() {
        Ok(status) => {
            let fingerprints: Vec<String> =
                status.fingerprints.iter().map(|one| keyring::hexadecimal(&one.0)).collect();
            json!({
                "source": status.source.setting(),
                "fingerprints": fingerprints,
                "loaded_at": status.loaded_at,
                "problem": status.problem,
            })
        }
        Err(error) => json!({
            "source": Value::Null,
            "fingerprints": [],
            "loaded_at": Value::Null,
            "problem": error.report().message(),
        }),
    };
    json::to_datum(&status).map(Some)
}
