//! Every door that SQL calls, one file for one file of `sql/`: arguments in, one call into a room, an answer
//! out. What is refused is recorded at the edge, in `pg::call`.

mod alerts;
mod approvals;
mod audit_log;
mod audit_seal;
mod audit_status;
mod audit_table;
mod audit_verification;
mod fields;
mod health;
mod health_audit;
mod key_backup;
mod key_states;
mod key_usage;
mod keys;
mod master_key_rotation;
mod redaction;
mod reencryption;
mod report;
mod rotation;
mod statistics;
#[path = "type.rs"]
mod types;

use fieldcrypt_envelope::KeyId;

use crate::error::Error;
use crate::pg::values::Varlena;

/// An argument that may be left out, but not be NULL: NULL is more often a slip than a wish.
fn given<T>(argument: Option<T>, name: &'static str) -> Result<T, Error> {
    argument.ok_or(Error::NullArgument(name))
}

/// An argument that is the id of a key.
fn given_key(argument: Option<i64>) -> Result<KeyId, Error> {
    KeyId::new(given(argument, "key_id")?).ok_or(Error::NotAKeyId)
}

/// An answer of type `text` or `bytea`.
fn answer(bytes: &[u8]) -> Result<Option<Varlena>, Error> {
    Varlena::of(bytes).map(Some)
}
