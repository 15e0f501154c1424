//! What rotation writes besides keys: its policies and its log.

use pgrx::pg_sys::Datum;

use crate::error::Error;
use crate::pg::call::{Call, sql_functions};
use crate::pg::session;
use crate::pg::spi::{self, Parameter};

sql_functions! {
    fieldcrypt_store_rotation_policy, pg_finfo_fieldcrypt_store_rotation_policy => store_rotation_policy;
    fieldcrypt_log_rotation, pg_finfo_fieldcrypt_log_rotation => log_rotation;
}

/// `set_rotation_policy` has checked what it passes; '' is the default for all tenants.
fn store_rotation_policy(call: &Call) -> Result<Option<Datum>, Error> {
    let tenant = call.bytes(0).ok_or(Error::NullArgument("tenant"))?;
    let every = call.bytes(1);
    session::as_owner(|| match every {
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
    Ok(Some(Datum::null()))
}

fn log_rotation(call: &Call) -> Result<Option<Datum>, Error> {
    let time = |index| Parameter::Time(call.bigint(index));
    let key = |index| Parameter::BigInt(call.bigint(index));
    let text = |index| Parameter::Text(call.bytes(index));
    session::as_owner(|| {
        spi::execute(
            "INSERT INTO fieldcrypt.rotation_log
                    (run_started_at, started_at, tenant, outcome, old_key_id, new_key_id,
                     error_code, error, reason)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            &[time(0), time(1), text(2), text(3), key(4), key(5), text(6), text(7), text(8)],
        )
    })?;
    Ok(Some(Datum::null()))
}
