//! The table of keys: its triggers, a tenant's first key, and what master keys are loaded.

use fieldcrypt_envelope::KeyId;
use pgrx::pg_sys::Datum;
use serde_json::{Value, json};

use crate::error::Error;
use crate::pg::invalidations;
use crate::pg::triggers::TriggerCall;
use crate::{fields, keyring, lifecycle, master_key};

crate::pg::sql_functions! {
    trigger invalidate_keys;
    create_key(tenant: text!) -> bigint;
    loaded_master_keys() -> text;
}

/// AFTER UPDATE and DELETE for each row, and TRUNCATE: tells every session.
fn invalidate_keys(trigger: &TriggerCall) -> Result<Option<Datum>, Error> {
    invalidations::invalidate(trigger.relation());
    Ok(Some(Datum::null()))
}

fn create_key(tenant: &[u8]) -> Result<KeyId, Error> {
    lifecycle::ensure_active(fields::tenant_of_key(tenant)?)
}

/// What this session has loaded, as JSON: `master_key_status()` joins it with what the database needs.
fn loaded_master_keys() -> Result<Value, Error> {
    Ok(match master_key::status() {
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
            "problem": error.report().message,
        }),
    })
}
