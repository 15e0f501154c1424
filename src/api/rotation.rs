//! Rotation of keys: one step of it, and what it writes besides keys, its policies and its log.

use fieldcrypt_envelope::KeyId;
use pgrx::pg_sys::Datum;

use super::given;
use crate::error::Error;
use crate::lifecycle::{self, Rotation};
use crate::pg;
use crate::pg::spi::{self, Parameter};
use crate::pg::sql::Record;
use crate::pg::{security, transaction};

pg::sql_functions! {
    rotate_key(tenant: text, reason: text, force: boolean, expected_key_id: bigint) -> record;
    refuse_unless_writable() -> void;
    store_rotation_policy(tenant: text, every: text) -> void;
    log_rotation(run_started_at: timestamptz, started_at: timestamptz, tenant: text, outcome: text,
                 old_key_id: bigint, new_key_id: bigint, error_code: text, error: text, reason: text) -> void;
}

/// One step of `rotate_keys`, which holds the loop and the commits.
fn rotate_key(
    tenant: Option<&[u8]>,
    reason: Option<&[u8]>,
    force: Option<bool>,
    expected_key_id: Option<i64>,
) -> Result<Record, Error> {
    let tenant = given(tenant, "tenant")?;
    let rotation = match expected_key_id.and_then(KeyId::new) {
        Some(expected) => lifecycle::rotate_if_active(tenant, reason, expected)?,
        None => Some(lifecycle::rotate(tenant, reason, force.unwrap_or(false))?),
    };
    let (old, new) = match rotation {
        Some(Rotation { old, new }) => (old.map_or(0, KeyId::as_i64), new.as_i64()),
        None => (0, 0),
    };
    Ok(Record::of([Datum::from(old), Datum::from(new)]))
}

fn refuse_unless_writable() -> Result<(), Error> {
    transaction::refuse_unless_writable()
}

/// `set_rotation_policy` has checked what it passes; '' is the default for all tenants.
fn store_rotation_policy(tenant: Option<&[u8]>, every: Option<&[u8]>) -> Result<(), Error> {
    let tenant = given(tenant, "tenant")?;
    security::as_owner(|| match every {
        Some(_) => spi::execute(
            "INSERT INTO fieldcrypt.rotation_policies (tenant, rotate_every)
             VALUES ($1, $2::pg_catalog.interval)
             ON CONFLICT (tenant) DO UPDATE
                SET rotate_every = EXCLUDED.rotate_every, set_at = EXCLUDED.set_at,
                    set_by = EXCLUDED.set_by",
            &[Parameter::Text(Some(tenant)), Parameter::Text(every)],
        ),
        None => spi::execute(
            "DELETE FROM fieldcrypt.rotation_policies WHERE tenant OPERATOR(pg_catalog.=) $1",
            &[Parameter::Text(Some(tenant))],
        ),
    })?;
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "the columns of a table")]
fn log_rotation(
    run_started_at: Option<i64>,
    started_at: Option<i64>,
    tenant: Option<&[u8]>,
    outcome: Option<&[u8]>,
    old_key_id: Option<i64>,
    new_key_id: Option<i64>,
    error_code: Option<&[u8]>,
    error: Option<&[u8]>,
    reason: Option<&[u8]>,
) -> Result<(), Error> {
    security::as_owner(|| {
        spi::execute(
            "INSERT INTO fieldcrypt.rotation_log
                    (run_started_at, started_at, tenant, outcome, old_key_id, new_key_id,
                     error_code, error, reason)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            &[
                Parameter::Time(run_started_at),
                Parameter::Time(started_at),
                Parameter::Text(tenant),
                Parameter::Text(outcome),
                Parameter::BigInt(old_key_id),
                Parameter::BigInt(new_key_id),
                Parameter::Text(error_code),
                Parameter::Text(error),
                Parameter::Text(reason),
            ],
        )
    })?;
    Ok(())
}
