//! The table of keys: its triggers, a tenant's first key, and what master keys are loaded.

use pgrx::pg_sys::Datum;
use serde_json::{Value, json};

use super::given;
use crate::error::Error;
use crate::pg;
use crate::pg::triggers::TriggerCall;
use crate::pg::values::Varlena;
use crate::pg::{invalidations, json};
use crate::{fields, keyring, lifecycle, master_key};

pg::sql_functions! {
    trigger invalidate_keys;
    create_key(tenant: text) -> bigint;
    loaded_master_keys() -> text;
}

/// AFTER UPDATE and DELETE for each row, and TRUNCATE: tells every session.
fn invalidate_keys(trigger: &TriggerCall) -> Result<Option<Datum>, Error> {
    invalidations::invalidate(trigger.relation());
    Ok(Some(Datum::null()))
}

fn create_key(tenant: Option<&[u8]>) -> Result<Option<i64>, Error> {
    let tenant = fields::tenant_of_call(given(tenant, "tenant")?)?;
    Ok(Some(lifecycle::ensure_active(tenant)?.as_i64()))
}

/// What this session has loaded, as JSON: `master_key_status()` joins it with what the database needs.
fn loaded_master_keys() -> Result<Option<Varlena>, Error> {
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
            "problem": error.report().message,
        }),
    };
    json::to_text(&status).map(Some)
}
