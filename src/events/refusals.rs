//! Failed decrypts and refused calls, recorded although they roll back.

use fieldcrypt_envelope::Ciphertext;
use pgrx::pg_sys;

use super::Event;
use super::queue::{self, Surviving};
use crate::error::Error;
use crate::keyring;
use crate::pg::client::{self, Client};
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

/// Postgres refused a call for want of a grant, in its own words. Called in a transaction that has failed.
pub fn denied(message: &[u8], client: &Client) {
    /// Every object that a privilege of `grant_access` is made of.
    const OBJECTS: &str = include_str!("../../sql/grants.sql");
    // The name is one of the words, at another place in another language; it is not qualified, and in ASCII.
    let is_part = |mark: char| mark.is_ascii_alphanumeric() || mark == '_';
    let is_ours = |name: &str| {
        name == "fieldcrypt"
            || OBJECTS.contains(&format!(" fieldcrypt.{name}("))
            || OBJECTS.contains(&format!(" fieldcrypt.{name}'"))
    };
    let message_text = String::from_utf8_lossy(message);
    let mut words = message_text.split(|mark| !is_part(mark)).filter(|word| !word.is_empty());
    if words.any(is_ours) {
        // Names of roles are as they were looked up; a pooler changes this one without a look-up.
        let client = Client { application: client::application(), ..client.clone() };
        let details = Surviving {
            error_code: Some("42501"),
            reason: Some(message),
            client: Some(&client),
            ..Surviving::default()
        };
        // The call was refused already, and a full queue goes to the server log.
        let _ = queue::push(Event::CallRefused, &details);
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
