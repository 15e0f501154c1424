//! Refused calls, recorded although they roll back.

use pgrx::pg_sys;

use super::Event;
use super::queue::{self, Surviving};
use crate::error::Error;
use crate::pg::client::{self, Client};
use crate::pg::{report, session};

/// A function of the extension gives an error. If it refuses somebody something, that is recorded; gives the
/// error to be raised.
pub fn called(function: pg_sys::Oid, error: Error) -> Error {
    if !error.is_refusal() {
        return error;
    }
    let report = error.report();
    let name = session::function_name(function);
    let message = report::in_database_encoding(&report.message);
    let reason = [name.as_slice(), b": ", &message].concat();
    let details = Surviving {
        error_code: Some(report.sqlstate.as_str()),
        reason: Some(&reason),
        ..Surviving::default()
    };
    match queue::push(Event::CallRefused, &details) {
        Ok(()) => error,
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
