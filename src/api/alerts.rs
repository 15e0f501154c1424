//! What alerts remember in their table.

use crate::error::Error;
use crate::pg::security;
use crate::pg::spi::{self, Parameter};

crate::pg::sql_functions! {
    store_alert(check: text, status: text, detail: text, hint: text, identity: text, is_told: boolean!) -> void;
    forget_alert(check: text) -> void;
}

type Text<'c> = Option<&'c [u8]>;

/// A finding as it is now; the last argument says whether somebody is told of it.
fn store_alert(
    check: Text,
    status: Text,
    detail: Text,
    hint: Text,
    identity: Text,
    is_told: bool,
) -> Result<u64, Error> {
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
    })
}

fn forget_alert(check: Text) -> Result<u64, Error> {
    security::as_owner(|| {
        spi::execute(
            "DELETE FROM fieldcrypt.alerts WHERE \"check\" OPERATOR(pg_catalog.=) $1",
            &[Parameter::Text(check)],
        )
    })
}
