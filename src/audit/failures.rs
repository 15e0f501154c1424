//! Failed decrypts and refused calls, recorded although they roll back.

use fieldcrypt_envelope::Ciphertext;
use pgrx::pg_sys;

use super::Event;
use super::queue::{self, Surviving};
use crate::error::Error;
use crate::keyring;
use crate::pg::{encoding, session};
use crate::usage;

/// A value did not decrypt. Gives the error to be raised: this one, or that it could not be recorded.
pub fn decrypt_failed(value: &[u8], error: Error) -> Error {
    if error.is_refusal() {
        // Recorded as a refused call.
        return error;
    }
    let key_id = Ciphertext::parse(value).ok().map(|value| value.key_id());
    let tenant = key_id.and_then(keyring::tenant_of_key);
    let ids: Vec<i64> = key_id.iter().map(|id| id.as_i64()).collect();
    usage::note_failure(tenant.as_deref());
    if !usage::records_failures() {
        return error;
    }
    let report = error.report();
    let details = Surviving {
        tenant: tenant.as_deref(),
        key_ids: &ids,
        value_count: Some(1),
        error_code: Some(&report.code()),
        reason: Some(report.message_bytes()),
        ..Surviving::default()
    };
    match queue::push(Event::DecryptFailed, &details) {
        Ok(()) => Error::Postgres(Box::new(report)),
        Err(not_recorded) => not_recorded,
    }
}

/// A function of the extension gives an error. If it refuses somebody something, that is recorded; gives the
/// error to be raised.
pub fn called(function: pg_sys::Oid, error: Error) -> Error {
    if !error.is_refusal() {
        return error;
    }
    let report = error.report();
    let name = session::function_name(function);
    let reason = [name.as_slice(), b": ", report.message_bytes()].concat();
    let details = Surviving {
        error_code: Some(&report.code()),
        reason: Some(&reason),
        ..Surviving::default()
    };
    match queue::push(Event::CallRefused, &details) {
        Ok(()) => Error::Postgres(Box::new(report)),
        Err(not_recorded) => not_recorded,
    }
}

/// The master key was loaded, or could not be.
pub fn master_key(event: Event, code: Option<&str>, reason: &str) -> Result<(), Error> {
    let reason = encoding::from_utf8(reason.as_bytes()).unwrap_or_default();
    queue::push(
        event,
        &Surviving { error_code: code, reason: Some(&reason), ..Surviving::default() },
    )
}
