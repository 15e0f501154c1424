//! Steps of `rotate_master_key`, which has the loop.

use fieldcrypt_envelope::Fingerprint;
use serde_json::Value;

use crate::error::Error;
use crate::lifecycle::rewrap;
use crate::pg::key_locks::{self, MasterKeysLock};

crate::pg::sql_functions! {
    target_master_key() -> bytea;
    lock_master_keys() -> void;
    make_current(target: bytea!) -> void;
    rewrap_keys(target: bytea!, key_ids: text!) -> text;
    retire_master_keys() -> void = rewrap::retire;
}

fn target_master_key() -> Result<Vec<u8>, Error> {
    Ok(rewrap::target()?.0.to_vec())
}

/// Waits until nobody is making a data key, prepared transactions included, and holds that.
fn lock_master_keys() -> Result<(), Error> {
    key_locks::lock_master_keys(MasterKeysLock::Switch)
}

fn make_current(target: &[u8]) -> Result<(), Error> {
    rewrap::make_current(fingerprint(target)?)
}

fn rewrap_keys(target: &[u8], key_ids: &[u8]) -> Result<Value, Error> {
    rewrap::rewrap_keys(fingerprint(target)?, key_ids)
}

fn fingerprint(bytes: &[u8]) -> Result<Fingerprint, Error> {
    bytes.try_into().map(Fingerprint).map_err(|_| Error::NullArgument("target"))
}
