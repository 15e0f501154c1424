//! Rotation of the master key: the data keys are wrapped again, one batch a transaction.
//!
//! Nothing but the rows is state: `master_keys.is_current` says where to, `master_key_fingerprint` of
//! a key whether it is there. `sql/master_key_rotation.sql` has the loop.

use fieldcrypt_envelope::{Fingerprint, KeyId};
use fieldcrypt_locked_memory::{DEEP, with_scrubbed_stack};
use serde_json::{Value, json};

use crate::error::Error;
use crate::keyring;
use crate::master_key;
use crate::pg::key_locks::{self, MasterKeysLock};
use crate::pg::key_table::{self, KeyRow};
use crate::pg::spi::{self, Parameter};
use crate::pg::{security, transaction};

/// The first master key of the source as it is now, whether or not a reload has reached this session.
pub fn target() -> Result<Fingerprint, Error> {
    transaction::refuse_unless_writable().map_err(|_| Error::MasterKeyRotation {
        problem: "the master key can't be rotated on a standby or in a READ ONLY transaction".into(),
        hint: "CALL fieldcrypt.rotate_master_key() on the primary, with default_transaction_read_only off.",
    })?;
    master_key::read_again()
}

/// New keys are wrapped by this master key from now on. Refused unless all that wrap keys here are
/// loaded: with the old line gone, what it wraps would stay behind.
pub fn make_current(target: Fingerprint) -> Result<(), Error> {
    security::as_owner(|| {
        spi::execute(
            "UPDATE fieldcrypt.master_keys SET is_current = false
              WHERE is_current AND fingerprint OPERATOR(pg_catalog.<>) $1",
            &[Parameter::Bytea(&target.0)],
        )?;
        spi::execute(
            "INSERT INTO fieldcrypt.master_keys (fingerprint, is_current) VALUES ($1, true)
             ON CONFLICT (fingerprint) DO UPDATE SET is_current = true, retired_at = NULL",
            &[Parameter::Bytea(&target.0)],
        )
    })?;
    retire()?;
    let loaded = master_key::fingerprints()?;
    let needed = keyring::not_loaded(&key_table::master_keys()?, &loaded);
    if !needed.is_empty() {
        return Err(Error::WrongMasterKey { needed, loaded });
    }
    // The source says which one it is to be, not the caller.
    if loaded.first() != Some(&target) {
        return Err(Error::MasterKeyRotation {
            problem: "this master key is not the first one of its source".into(),
            hint: "CALL fieldcrypt.rotate_master_key(), which rotates to the first one.",
        });
    }
    Ok(())
}

/// Master keys that wrap nothing need not be loaded any more.
pub fn retire() -> Result<u64, Error> {
    security::as_owner(|| {
        spi::execute(
            "UPDATE fieldcrypt.master_keys AS m SET retired_at = pg_catalog.clock_timestamp()
              WHERE m.retired_at IS NULL AND NOT m.is_current
                AND NOT EXISTS (
                    SELECT FROM fieldcrypt.encryption_keys AS k
                     WHERE k.master_key_fingerprint OPERATOR(pg_catalog.=) m.fingerprint
                       AND k.wrapped_key IS NOT NULL)",
            &[],
        )
    })
}

/// Wraps the keys of these ids again, a list with commas, whose rows the caller has locked. Gives how many,
/// and the ids of those that did not open with the reason.
pub fn rewrap_keys(target: Fingerprint, ids: &[u8]) -> Result<Value, Error> {
    // Against another run's switch to yet another master key, until the end of the transaction.
    key_locks::lock_master_keys(MasterKeysLock::MakeDataKey)?;
    let is_current =
        key_table::master_keys()?.iter().any(|row| row.is_current && row.fingerprint == target);
    if !is_current {
        return Err(Error::MasterKeyRotation {
            problem: "the current master key has changed meanwhile".into(),
            hint: "Another rotate_master_key() has gone on to another one: call it again.",
        });
    }
    let mut rewrapped: Vec<Value> = Vec::new();
    let mut failures: Vec<Value> = Vec::new();
    for id in str::from_utf8(ids).unwrap_or_default().split(',') {
        let Some(key_id) = id.parse().ok().and_then(KeyId::new) else { continue };
        let Some(row) = key_table::key_by_id(key_id)? else { continue };
        if row.master_key == target || row.wrapped_key.is_none() {
            continue;
        }
        match rewrap(&row, target) {
            Ok(wrapped) => rewrapped.push(json!([id, keyring::hexadecimal(&wrapped)])),
            Err(error) if is_of_the_key(&error) => {
                failures.push(json!({ "key_id": id, "error": error.report().message }));
            }
            Err(error) => return Err(error),
        }
    }
    if !rewrapped.is_empty() {
        store(target, &rewrapped)?;
    }
    Ok(json!({ "rewrapped": rewrapped.len(), "failures": failures }))
}

fn rewrap(row: &KeyRow, target: Fingerprint) -> Result<Vec<u8>, Error> {
    with_scrubbed_stack::<DEEP, _>(|| {
        keyring::with_wrapped(row, |wrapped, metadata| {
            master_key::rewrap(row.master_key, target, wrapped, metadata, &row.check)
        })
    })
}

/// Whether the error tells of one key, so that the others can go on.
fn is_of_the_key(error: &Error) -> bool {
    matches!(
        error,
        Error::WrappedKeyNotAuthentic(_)
            | Error::WrongMasterKey { .. }
            | Error::KeyTable(_)
            | Error::NotUtf8
    )
}

/// One UPDATE a batch: each would make every plan on the table be made anew.
fn store(target: Fingerprint, rewrapped: &[Value]) -> Result<(), Error> {
    let list = json!(rewrapped).to_string();
    let touched = security::as_owner(|| {
        spi::execute(
            "UPDATE fieldcrypt.encryption_keys AS k
                SET wrapped_key = n.wrapped_key, master_key_fingerprint = $1
               FROM (SELECT (e.value OPERATOR(pg_catalog.->>) 0)::pg_catalog.int8 AS key_id,
                            pg_catalog.decode(e.value OPERATOR(pg_catalog.->>) 1, 'hex') AS wrapped_key
                       FROM pg_catalog.json_array_elements($2::pg_catalog.json) AS e
                     OFFSET 0) AS n
              WHERE k.key_id OPERATOR(pg_catalog.=) n.key_id
                AND k.wrapped_key IS NOT NULL",
            &[Parameter::Bytea(&target.0), Parameter::Text(Some(list.as_bytes()))],
        )
    })?;
    if touched == rewrapped.len() as u64 { Ok(()) } else { Err(Error::KeyChangedSinceSnapshot) }
}
