//! What alerts remember in their table.

use super::given;
use crate::error::Error;
use crate::pg;
use crate::pg::security;
use crate::pg::spi::{self, Parameter};

pg::sql_functions! {
    store_alert(check: text, status: text, detail: text, hint: text, identity: text, is_told: boolean) -> void;
    forget_alert(check: text) -> void;
}

/// A finding as it is now; the last argument says whether somebody is told of it.
fn store_alert(
    check: Option<&[u8]>,
    status: Option<&[u8]>,
    detail: Option<&[u8]>,
    hint: Option<&[u8]>,
    identity: Option<&[u8]>,
    is_told: Option<bool>,
) -> Result<(), Error> {
    let is_told = given(is_told, "is_told")?;
    let [check, status, detail, hint, identity] =
        [check, status, detail, hint, identity].map(Parameter::Text);
    security::as_owner(|| {
        spi::execute(
            "INSERT INTO fieldcrypt.alerts AS a (\"check\", status, detail, hint, identity)
             VALUES ($1, $2, $3, $4, $5::pg_catalog.jsonb)
             ON CONFLICT (\"check\") DO UPDATE
                SET status = EXCLUDED.status, detail = EXCLUDED.detail, hint = EXCLUDED.hint,
                    identity = EXCLUDED.identity,
                    told_at = CASE WHEN $6 OPERATOR(pg_catalog.=) 1 THEN EXCLUDED.told_at ELSE a.told_at END",
            &[check, status, detail, hint, identity, Parameter::Integer(is_told.into())],
        )
    })?;
    Ok(())
}

fn forget_alert(check: Option<&[u8]>) -> Result<(), Error> {
    security::as_owner(|| {
        spi::execute(
            "DELETE FROM fieldcrypt.alerts WHERE \"check\" OPERATOR(pg_catalog.=) $1",
            &[Parameter::Text(check)],
        )
    })?;
    Ok(())
}
