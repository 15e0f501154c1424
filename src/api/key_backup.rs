//! Exports of the key table, keys that come back from one, and where the keys are.

use fieldcrypt_envelope::KeyId;

use super::{answer, given};
use crate::error::Error;
use crate::lifecycle::export;
use crate::pg;
use crate::pg::spi::{self, Parameter};
use crate::pg::values::Varlena;
use crate::pg::{encoding, security};

pg::sql_functions! {
    seal_export(contents: text) -> text;
    read_export(document: text) -> text;
    import_keys(document: text, apply_states: boolean, renumber: boolean) -> text;
    key_problem(key_id: bigint) -> text;
    renumber_key(key_id: bigint, version: integer) -> void;
    record_origin(is_confirmed: boolean, reason: text) -> void;
}

fn seal_export(contents: Option<&[u8]>) -> Result<Option<Varlena>, Error> {
    answer(export::seal(given(contents, "document")?)?.as_bytes())
}

fn read_export(document: Option<&[u8]>) -> Result<Option<Varlena>, Error> {
    answer(export::read(given(document, "document")?)?.as_bytes())
}

fn import_keys(
    document: Option<&[u8]>,
    apply_states: Option<bool>,
    renumber: Option<bool>,
) -> Result<Option<Varlena>, Error> {
    let (apply_states, renumber) = (apply_states.unwrap_or(false), renumber.unwrap_or(false));
    answer(export::import(given(document, "document")?, apply_states, renumber)?.as_bytes())
}

fn key_problem(key_id: Option<i64>) -> Result<Option<Varlena>, Error> {
    match export::problem_of(key_id.and_then(KeyId::new))? {
        Some(problem) => answer(&encoding::from_utf8(problem.as_bytes())?),
        None => Ok(None),
    }
}

fn renumber_key(key_id: Option<i64>, version: Option<i32>) -> Result<(), Error> {
    let (Some(key_id), Some(version)) = (key_id.and_then(KeyId::new), version) else {
        return Err(Error::NullArgument("key_id and version"));
    };
    export::renumber(key_id, version)
}

/// Notes where the keys are.
fn record_origin(is_confirmed: Option<bool>, reason: Option<&[u8]>) -> Result<(), Error> {
    let is_confirmed = i32::from(is_confirmed.unwrap_or(false));
    let reason = given(reason, "reason")?;
    security::as_owner(|| {
        spi::execute(
            "SELECT fieldcrypt_internal.write_origin($1 OPERATOR(pg_catalog.=) 1, $2)",
            &[Parameter::Integer(is_confirmed), Parameter::Text(Some(reason))],
        )
    })?;
    Ok(())
}
