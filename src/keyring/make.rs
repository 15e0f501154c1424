//! New data keys: drawn, wrapped, and written to the table.

use fieldcrypt_envelope::{DataKey, Fingerprint, KeyId};
use fieldcrypt_locked_memory::{DEEP, with_scrubbed_stack};

use super::{guard, with_metadata};
use crate::error::Error;
use crate::master_key;
use crate::pg::key_locks::{self, MasterKeysLock};
use crate::pg::key_table::{self, KeyRow, MasterKeyRow, Purpose};
use crate::pg::spi::{self, Parameter};
use crate::pg::{nodes, security};

/// Makes a key of a tenant, which is active. The caller is alone with the tenant, has seen to it that no
/// other of its keys is, and records it. Refused where keys come from another node: keys are made nowhere else.
pub fn make(purpose: Purpose, tenant: &[u8], version: i32) -> Result<KeyId, Error> {
    nodes::refuse_unless_made_here(purpose)?;
    let master_key = current_master_key()?;
    let key_id = unused_key_id()?;
    let (wrapped, check) = with_scrubbed_stack::<DEEP, _>(|| {
        let data_key = DataKey::generate()?;
        let wrapped = with_metadata(purpose, key_id, tenant, version, |metadata| {
            master_key::wrap_key(master_key, &data_key, metadata)
        })?;
        Ok::<_, Error>((wrapped, data_key.check(key_id)))
    })?;
    security::as_owner(|| {
        spi::execute(
            "INSERT INTO fieldcrypt.encryption_keys
                    (key_id, tenant, purpose, version, state, algorithm, wrapped_key,
                     master_key_fingerprint, key_check)
             VALUES ($1, $2, $3, $4, 'active', $5, $6, $7, $8)",
            &[
                Parameter::BigInt(Some(key_id.as_i64())),
                Parameter::Text(Some(tenant)),
                Parameter::Text(Some(purpose.name().as_bytes())),
                Parameter::Integer(version),
                Parameter::Text(Some(purpose.algorithm().as_bytes())),
                Parameter::Bytea(&wrapped),
                Parameter::Bytea(&master_key.0),
                Parameter::Bytea(&check),
            ],
        )
    })?;
    guard::end_restore();
    Ok(key_id)
}

fn unused_key_id() -> Result<KeyId, Error> {
    loop {
        let key_id = KeyId::generate()?;
        if key_table::key_by_id(key_id)?.is_none() {
            return Ok(key_id);
        }
    }
}

/// The master key that wraps new keys: the database's current one, which is the first that was ever
/// loaded here until it is rotated. Refused unless every master key that wraps keys here is loaded, so
/// that a server started with a wrong key file does not begin a second generation of keys. A session
/// that the reload has not reached reads the source again.
fn current_master_key() -> Result<Fingerprint, Error> {
    let mut loaded = master_key::fingerprints()?;
    key_locks::lock_master_keys(MasterKeysLock::MakeDataKey)?;
    let mut known = key_table::master_keys()?;
    if known.is_empty() {
        key_locks::lock_master_keys(MasterKeysLock::FirstMasterKey)?;
        known = key_table::master_keys()?;
    }
    if known.is_empty() {
        let first = *loaded.first().ok_or(Error::NoMasterKey)?;
        if key_table::has_keys()? {
            return Err(Error::KeyTable(
                "encryption_keys has rows and master_keys has none".into(),
            ));
        }
        security::as_owner(|| {
            spi::execute(
                "INSERT INTO fieldcrypt.master_keys (fingerprint, is_current) VALUES ($1, true)",
                &[Parameter::Bytea(&first.0)],
            )?;
            // From here on a restore is noticed: the states of its keys would be older than this.
            spi::execute(
                "SELECT fieldcrypt_internal.write_origin(true, 'the first key was made here')",
                &[],
            )
        })?;
        return Ok(first);
    }
    let mut needed = not_loaded(&known, &loaded);
    if let Some(missing) = needed.first() {
        master_key::look_again_for(*missing);
        loaded = master_key::fingerprints()?;
        needed = not_loaded(&known, &loaded);
    }
    if !needed.is_empty() {
        return Err(Error::WrongMasterKey { needed, loaded });
    }
    known
        .iter()
        .find(|row| row.is_current)
        .map(|row| row.fingerprint)
        .ok_or_else(|| Error::KeyTable("master_keys has no current row".into()))
}

/// The master keys that wrap keys of this database and are not loaded.
pub fn not_loaded(known: &[MasterKeyRow], loaded: &[Fingerprint]) -> Vec<Fingerprint> {
    known
        .iter()
        .filter(|row| !row.is_retired)
        .map(|row| row.fingerprint)
        .filter(|fingerprint| !loaded.contains(fingerprint))
        .collect()
}

/// The row of a key that was just made.
pub fn written(key_id: KeyId) -> Result<KeyRow, Error> {
    key_table::key_by_id(key_id)?
        .ok_or_else(|| Error::Internal("a key that was just written can't be found".into()))
}
