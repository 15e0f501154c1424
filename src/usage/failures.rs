//! Failed decryptions, recorded although they roll back.

use fieldcrypt_envelope::AnyCiphertext;

use crate::error::Error;
use crate::events::{self, Event, Surviving};
use crate::keyring;
use crate::pg::report;

/// A value did not decrypt. Gives the error to be raised: this one, or that it could not be recorded.
pub fn decrypt_failed(value: &[u8], error: Error) -> Error {
    if error.is_refusal() {
        // Recorded as a refused call.
        return error;
    }
    let key_id = AnyCiphertext::parse(value).ok().map(|value| value.key_id());
    let tenant = key_id.and_then(keyring::tenant_of_key);
    let ids: Vec<i64> = key_id.iter().map(|id| id.as_i64()).collect();
    super::note_failure(tenant.as_deref());
    if !super::records_failures() {
        return error;
    }
    let report = error.report();
    let details = Surviving {
        tenant: tenant.as_deref(),
        key_ids: &ids,
        value_count: Some(1),
        error_code: Some(report.sqlstate.as_str()),
        reason: Some(&report::in_database_encoding(&report.message)),
        ..Surviving::default()
    };
    match events::push(Event::DecryptFailed, &details) {
        Ok(()) => error,
        Err(not_recorded) => not_recorded,
    }
}
