//! What alerts and verifications of the audit log leave in their tables.

use pgrx::pg_sys::Datum;

use crate::error::Error;
use crate::pg::call::{Call, sql_functions};
use crate::pg::session;
use crate::pg::spi::{self, Parameter};

sql_functions! {
    fieldcrypt_store_alert, pg_finfo_fieldcrypt_store_alert => store_alert;
    fieldcrypt_forget_alert, pg_finfo_fieldcrypt_forget_alert => forget_alert;
    fieldcrypt_store_verification, pg_finfo_fieldcrypt_store_verification => store_verification;
}

/// A finding as it is now; the last argument says whether somebody is told of it.
fn store_alert(call: &Call) -> Result<Option<Datum>, Error> {
    let text = |index| Parameter::Text(call.bytes(index));
    let is_told = call.boolean(5).ok_or(Error::NullArgument("is_told"))?;
    session::as_owner(|| {
        spi::execute(
            "INSERT INTO fieldcrypt.alerts AS a (\"check\", status, detail, hint, identity)
             VALUES ($1, $2, $3, $4, $5::pg_catalog.jsonb)
             ON CONFLICT (\"check\") DO UPDATE
                SET status = EXCLUDED.status, detail = EXCLUDED.detail, hint = EXCLUDED.hint,
                    identity = EXCLUDED.identity,
                    told_at = CASE WHEN $6 OPERATOR(pg_catalog.=) 1 THEN EXCLUDED.told_at ELSE a.told_at END",
            &[text(0), text(1), text(2), text(3), text(4), Parameter::Integer(is_told.into())],
        )
    })?;
    Ok(Some(Datum::null()))
}

fn forget_alert(call: &Call) -> Result<Option<Datum>, Error> {
    session::as_owner(|| {
        spi::execute(
            "DELETE FROM fieldcrypt.alerts WHERE \"check\" OPERATOR(pg_catalog.=) $1",
            &[Parameter::Text(call.bytes(0))],
        )
    })?;
    Ok(Some(Datum::null()))
}

fn store_verification(call: &Call) -> Result<Option<Datum>, Error> {
    session::as_owner(|| {
        spi::execute(
            "INSERT INTO fieldcrypt.audit_verifications (started_at, status, findings, detail)
             VALUES ($1, $2, $3, $4)",
            &[
                Parameter::Time(call.bigint(0)),
                Parameter::Text(call.bytes(1)),
                Parameter::BigInt(call.bigint(2)),
                Parameter::Text(call.bytes(3)),
            ],
        )
    })?;
    Ok(Some(Datum::null()))
}
