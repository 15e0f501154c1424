//! Approvals: the writes, each of which holds its own conditions, and the setting.
//!
//! The conditions are in the statements: a second session that spends or approves the same one at the
//! same time finds them no longer true. Who asks and who approves is `session_user` in them, so that
//! no caller, the owner of the extension included, says who it is. Nor does code that a superuser's
//! VACUUM or re-encryption runs for the owner of a table, though session_user is the superuser there.

use crate::error::Error;
use crate::pg::spi::{self, Parameter};
use crate::pg::{roles, security};
use crate::settings;

crate::pg::sql_functions! {
    needs_approval(operation: words!) -> boolean;
    login_role() -> text;
    by_own_hand() -> void = security::note_own_hand;
    refuse_unless_own_hand() -> void = security::refuse_unless_own_hand;
    insert_approval(id: bigint!, operation: words!, subject: words!, reason: words!, expires_in: bigint!) -> boolean;
    mark_approved(id: bigint!) -> boolean;
    mark_used(id: bigint!) -> boolean;
    mark_withdrawn(id: bigint!) -> boolean;
}

fn needs_approval(operation: &[u8]) -> Result<bool, Error> {
    if !settings::APPROVED_OPERATIONS.contains(&operation) {
        return Err(Error::UnknownOperation);
    }
    Ok(settings::requires_approval(operation))
}

fn login_role() -> Result<Vec<u8>, Error> {
    Ok(roles::login_role())
}

fn insert_approval(
    id: i64,
    operation: &[u8],
    subject: &[u8],
    reason: &[u8],
    seconds: i64,
) -> Result<bool, Error> {
    let text = |text| Parameter::Text(Some(text));
    write(
        "INSERT INTO fieldcrypt.approvals (id, operation, subject, reason, expires_at)
         VALUES ($1, $2, $3, $4, pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+)
                 pg_catalog.make_interval(secs => $5::pg_catalog.float8))",
        &[
            Parameter::BigInt(Some(id)),
            text(operation),
            text(subject),
            text(reason),
            Parameter::BigInt(Some(seconds)),
        ],
    )
}

fn mark_approved(id: i64) -> Result<bool, Error> {
    security::refuse_unless_own_hand()?;
    write(
        "UPDATE fieldcrypt.approvals
            SET approved_by = session_user, approved_role = fieldcrypt_internal.outer_role(),
                approved_login = fieldcrypt_internal.login_role(), approved_at = pg_catalog.clock_timestamp()
          WHERE id OPERATOR(pg_catalog.=) $1
            AND approved_by IS NULL AND used_by IS NULL AND withdrawn_by IS NULL
            AND expires_at OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp()
            AND requested_by OPERATOR(pg_catalog.<>) session_user::pg_catalog.text
            AND requested_login OPERATOR(pg_catalog.<>) fieldcrypt_internal.login_role()",
        &[Parameter::BigInt(Some(id))],
    )
}

fn mark_used(id: i64) -> Result<bool, Error> {
    write(
        "UPDATE fieldcrypt.approvals
            SET used_by = session_user, used_role = fieldcrypt_internal.outer_role(),
                used_at = pg_catalog.clock_timestamp()
          WHERE id OPERATOR(pg_catalog.=) $1
            AND approved_by IS NOT NULL AND used_by IS NULL AND withdrawn_by IS NULL
            AND expires_at OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp()
            AND requested_by OPERATOR(pg_catalog.=) session_user::pg_catalog.text
            AND requested_login OPERATOR(pg_catalog.=) fieldcrypt_internal.login_role()",
        &[Parameter::BigInt(Some(id))],
    )
}

fn mark_withdrawn(id: i64) -> Result<bool, Error> {
    write(
        "UPDATE fieldcrypt.approvals
            SET withdrawn_by = session_user, withdrawn_at = pg_catalog.clock_timestamp()
          WHERE id OPERATOR(pg_catalog.=) $1 AND used_by IS NULL AND withdrawn_by IS NULL",
        &[Parameter::BigInt(Some(id))],
    )
}

/// Whether the statement found what it is about.
fn write(statement: &'static str, parameters: &[Parameter<'_>]) -> Result<bool, Error> {
    security::refuse_for_planted_code()?;
    let touched = security::as_owner(|| spi::execute(statement, parameters))?;
    Ok(touched == 1)
}
