//! Steps of `rotate_master_key`, which has the loop.

use fieldcrypt_envelope::Fingerprint;

use super::{answer, given};
use crate::error::Error;
use crate::lifecycle::rewrap;
use crate::pg;
use crate::pg::json;
use crate::pg::key_locks::{self, MasterKeysLock};
use crate::pg::values::Varlena;

pg::sql_functions! {
    target_master_key() -> bytea;
    lock_master_keys() -> void;
    make_current(target: bytea) -> void;
    rewrap_keys(target: bytea, key_ids: text) -> text;
    retire_master_keys() -> void;
}

fn target_master_key() -> Result<Option<Varlena>, Error> {
    answer(&rewrap::target()?.0)
}

/// Waits until nobody is making a data key, prepared transactions included, and holds that.
fn lock_master_keys() -> Result<(), Error> {
    key_locks::lock_master_keys(MasterKeysLock::Switch)
}

fn make_current(target: Option<&[u8]>) -> Result<(), Error> {
    rewrap::make_current(fingerprint(target)?)
}

fn rewrap_keys(target: Option<&[u8]>, key_ids: Option<&[u8]>) -> Result<Option<Varlena>, Error> {
    let result = rewrap::rewrap_keys(fingerprint(target)?, given(key_ids, "key_ids")?)?;
    json::to_text(&result).map(Some)
}

fn retire_master_keys() -> Result<(), Error> {
    rewrap::retire().map(drop)
}

fn fingerprint(bytes: Option<&[u8]>) -> Result<Fingerprint, Error> {
    let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
    given(bytes.map(Fingerprint), "target")
}
