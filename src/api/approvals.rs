//! Approvals: the writes, each of which holds its own conditions, and the setting.
//!
//! The conditions are in the statements: a second session that spends or approves the same one at the
//! same time finds them no longer true. Who asks and who approves is `session_user` in them, so that
//! no caller, the owner of the extension included, says who it is. Nor does code that a superuser's
//! VACUUM or re-encryption runs for the owner of a table, though session_user is the superuser there.

use pgrx::pg_sys::Datum;

use super::given;
use crate::error::Error;
use crate::pg::call::{Call, sql_functions};
use crate::pg::session;
use crate::pg::spi::{self, Parameter};
use crate::pg::values::Varlena;
use crate::settings;

sql_functions! {
    fieldcrypt_needs_approval, pg_finfo_fieldcrypt_needs_approval => needs_approval;
    fieldcrypt_login_role, pg_finfo_fieldcrypt_login_role => login_role;
    fieldcrypt_by_own_hand, pg_finfo_fieldcrypt_by_own_hand => by_own_hand;
    fieldcrypt_refuse_unless_own_hand, pg_finfo_fieldcrypt_refuse_unless_own_hand => refuse_unless_own_hand;
    fieldcrypt_insert_approval, pg_finfo_fieldcrypt_insert_approval => insert_approval;
    fieldcrypt_mark_approved, pg_finfo_fieldcrypt_mark_approved => mark_approved;
    fieldcrypt_mark_used, pg_finfo_fieldcrypt_mark_used => mark_used;
    fieldcrypt_mark_withdrawn, pg_finfo_fieldcrypt_mark_withdrawn => mark_withdrawn;
}

fn needs_approval(call: &Call) -> Result<Option<Datum>, Error> {
    let operation = given(call, 0, "operation")?;
    if !settings::APPROVED_OPERATIONS.contains(&operation) {
        return Err(Error::UnknownOperation);
    }
    Ok(Some(Datum::from(settings::requires_approval(operation))))
}

fn login_role(_: &Call) -> Result<Option<Datum>, Error> {
    Ok(Some(Varlena::of(&session::login_role())?.into_datum()))
}

fn by_own_hand(_: &Call) -> Result<Option<Datum>, Error> {
    session::note_own_hand()?;
    Ok(Some(Datum::null()))
}

fn refuse_unless_own_hand(_: &Call) -> Result<Option<Datum>, Error> {
    session::refuse_unless_own_hand()?;
    Ok(Some(Datum::null()))
}

fn insert_approval(call: &Call) -> Result<Option<Datum>, Error> {
    let seconds = call.bigint(4).ok_or(Error::NullArgument("expires_in"))?;
    write(
        "INSERT INTO fieldcrypt.approvals (id, operation, subject, reason, expires_at)
         VALUES ($1, $2, $3, $4, pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+)
                 pg_catalog.make_interval(secs => $5::pg_catalog.float8))",
        &[
            id(call)?,
            Parameter::Text(Some(given(call, 1, "operation")?)),
            Parameter::Text(Some(given(call, 2, "subject")?)),
            Parameter::Text(Some(given(call, 3, "reason")?)),
            Parameter::BigInt(Some(seconds)),
        ],
    )
}

fn mark_approved(call: &Call) -> Result<Option<Datum>, Error> {
    session::refuse_unless_own_hand()?;
    write(
        "UPDATE fieldcrypt.approvals
            SET approved_by = session_user, approved_role = fieldcrypt_internal.outer_role(),
                approved_login = fieldcrypt_internal.login_role(), approved_at = pg_catalog.clock_timestamp()
          WHERE id OPERATOR(pg_catalog.=) $1
            AND approved_by IS NULL AND used_by IS NULL AND withdrawn_by IS NULL
            AND expires_at OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp()
            AND requested_by OPERATOR(pg_catalog.<>) session_user::pg_catalog.text
            AND requested_login OPERATOR(pg_catalog.<>) fieldcrypt_internal.login_role()",
        &[id(call)?],
    )
}

fn mark_used(call: &Call) -> Result<Option<Datum>, Error> {
    write(
        "UPDATE fieldcrypt.approvals
            SET used_by = session_user, used_role = fieldcrypt_internal.outer_role(),
                used_at = pg_catalog.clock_timestamp()
          WHERE id OPERATOR(pg_catalog.=) $1
            AND approved_by IS NOT NULL AND used_by IS NULL AND withdrawn_by IS NULL
            AND expires_at OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp()
            AND requested_by OPERATOR(pg_catalog.=) session_user::pg_catalog.text
            AND requested_login OPERATOR(pg_catalog.=) fieldcrypt_internal.login_role()",
        &[id(call)?],
    )
}

fn mark_withdrawn(call: &Call) -> Result<Option<Datum>, Error> {
    write(
        "UPDATE fieldcrypt.approvals
            SET withdrawn_by = session_user, withdrawn_at = pg_catalog.clock_timestamp()
          WHERE id OPERATOR(pg_catalog.=) $1 AND used_by IS NULL AND withdrawn_by IS NULL",
        &[id(call)?],
    )
}

fn id<'a>(call: &Call) -> Result<Parameter<'a>, Error> {
    let id = call.bigint(0).ok_or(Error::NullArgument("id"))?;
    Ok(Parameter::BigInt(Some(id)))
}

/// Whether the statement found what it is about.
fn write(statement: &'static str, parameters: &[Parameter<'_>]) -> Result<Option<Datum>, Error> {
    session::refuse_for_planted_code()?;
    let touched = session::as_owner(|| spi::execute(statement, parameters))?;
    Ok(Some(Datum::from(touched == 1)))
}
