//! Rotation of keys: one step of it, and what it writes besides keys, its policies and its log.

use fieldcrypt_envelope::KeyId;
use pgrx::pg_sys::Datum;

use crate::error::Error;
use crate::lifecycle::{self, Rotation};
use crate::pg::spi::{self, Parameter};
use crate::pg::sql::Record;
use crate::pg::{security, transaction};

crate::pg::sql_functions! {
    rotate_active_key(tenant: text!, reason: words, force: boolean, expected_key_id: key_id) -> record;
    refuse_unless_writable() -> void = transaction::refuse_unless_writable;
    refuse_unless_committable() -> void = transaction::refuse_unless_committable;
    store_rotation_policy(tenant: words!, every: words) -> void;
    log_rotation(run_started_at: timestamptz, started_at: timestamptz, tenant: words, outcome: words,
                 old_key_id: bigint, new_key_id: bigint, error_code: words, error: text, reason: words) -> void;
}

type Text<'c> = Option<&'c [u8]>;

/// One step of `rotate_keys`, which holds the loop and the commits.
fn rotate_active_key(
    tenant: &[u8],
    reason: Text,
    force: Option<bool>,
    expected: Option<KeyId>,
) -> Result<Record, Error> {
    let rotation = match expected {
        Some(expected) => lifecycle::rotate_if_active(tenant, reason, expected)?,
        None => Some(lifecycle::rotate(tenant, reason, force.unwrap_or(false))?),
    };
    let (old, new) = match rotation {
        Some(Rotation { old, new }) => (old.map_or(0, KeyId::as_i64), new.as_i64()),
        None => (0, 0),
    };
    Ok(Record::of([Datum::from(old), Datum::from(new)]))
}

/// `set_rotation_policy` has checked what it passes; '' is the default for all tenants.
fn store_rotation_policy(tenant: &[u8], every: Text) -> Result<u64, Error> {
    if every.is_some() && !tenant.is_empty() {
        lifecycle::refuse_unknown_tenant(tenant)?;
    }
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
    })
}

#[expect(clippy::too_many_arguments, reason = "the columns of a table")]
fn log_rotation(
    run_started_at: Option<i64>,
    started_at: Option<i64>,
    tenant: Text,
    outcome: Text,
    old_key_id: Option<i64>,
    new_key_id: Option<i64>,
    error_code: Text,
    error: Text,
    reason: Text,
) -> Result<u64, Error> {
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
    })
}
