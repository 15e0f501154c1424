//! The one place that opens `encryption_keys` and `master_keys` for reading.
//!
//! They are read as Postgres reads its own catalogs: by index, under a fresh catalog snapshot, so
//! that a REPEATABLE READ transaction and a parallel worker see the newest committed key too, and a
//! look-up costs a few microseconds, not an SPI call.

pub use fieldcrypt_envelope::Purpose;
use fieldcrypt_envelope::{Fingerprint, KeyId, KeyState};
use fieldcrypt_error::Error;
use pgrx::pg_sys;

use super::relations::{self, Relations};
use super::scan::{first, has_rows, int8_key, scan, text_key};
use super::tuple;

/// A row of `fieldcrypt.encryption_keys`. Texts are in the database's encoding.
pub struct KeyRow {
    /// Column `key_id`.
    pub key_id: KeyId,
    /// Column `tenant`.
    pub tenant: Vec<u8>,
    /// Column `purpose`.
    pub purpose: Vec<u8>,
    /// Column `version`.
    pub version: i32,
    /// Column `state`.
    pub state: KeyState,
    /// Column `algorithm`.
    pub algorithm: Vec<u8>,
    /// Column `wrapped_key`, `None` once destroyed.
    pub wrapped_key: Option<Vec<u8>>,
    /// Column `master_key_fingerprint`.
    pub master_key: Fingerprint,
    /// Column `key_check`.
    pub check: [u8; 16],
    /// Column `suspended_from`: the state that a suspended key had before.
    pub suspended_from: Option<KeyState>,
    /// Column `destroy_after`, in Postgres's time: from when on it may be erased, if that is scheduled.
    pub destroy_after: Option<i64>,
    /// Whether this row version was written by the current transaction, which may yet roll back.
    pub uncommitted: bool,
}

/// A row of `fieldcrypt.master_keys`.
pub struct MasterKeyRow {
    /// Column `fingerprint`.
    pub fingerprint: Fingerprint,
    /// Column `is_current`: new data keys are wrapped by this one.
    pub is_current: bool,
    /// Column `retired_at`: whether nothing was wrapped by it any more when a rotation ended.
    pub is_retired: bool,
}

impl KeyRow {
    /// What the key is for, if this version knows it, whatever its algorithm.
    pub fn known_purpose(&self) -> Option<Purpose> {
        str::from_utf8(&self.purpose).ok().and_then(Purpose::parse)
    }

    /// What the key is for, if this version knows it and the algorithm.
    pub fn purpose(&self) -> Result<Purpose, Error> {
        self.known_purpose()
            .filter(|purpose| purpose.algorithm().as_bytes() == self.algorithm)
            .ok_or_else(|| {
                Error::KeyTable(format!(
                    "encryption key {} has an algorithm or purpose that this version does not know",
                    self.key_id
                ))
            })
    }
}

/// The key with this id.
pub fn key_by_id(key_id: KeyId) -> Result<Option<KeyRow>, Error> {
    let relations = Relations::resolve()?;
    let key = int8_key(keys::KEY_ID, key_id.as_i64());
    first(relations.keys, relations.keys_by_id, &mut [key], key_row)
}

/// The tenant's active key.
pub fn active_key(purpose: Purpose, tenant: &[u8]) -> Result<Option<KeyRow>, Error> {
    let relations = Relations::resolve()?;
    let mut scan_keys = tenant_keys(purpose, tenant)?;
    // The index holds active keys only; with ignore_system_indexes the table is scanned instead.
    let mut found = None;
    scan(relations.keys, relations.active_keys, &mut scan_keys, |row| {
        let row = key_row(row)?;
        if row.state == KeyState::Active {
            found = Some(row);
        }
        Ok(found.is_none())
    })?;
    Ok(found)
}

/// The highest version among the tenant's keys in any state; `None` if the tenant never had one.
pub fn newest_version(purpose: Purpose, tenant: &[u8]) -> Result<Option<i32>, Error> {
    let relations = Relations::resolve()?;
    let mut newest = None;
    let mut scan_keys = tenant_keys(purpose, tenant)?;
    scan(relations.keys, relations.keys_by_version, &mut scan_keys, |row| {
        newest = newest.max(Some(row.integer(keys::VERSION)?));
        Ok(true)
    })?;
    Ok(newest)
}

/// All of the tenant's keys, in any state.
pub fn keys_of_tenant(purpose: Purpose, tenant: &[u8]) -> Result<Vec<KeyRow>, Error> {
    let relations = Relations::resolve()?;
    let mut rows = Vec::new();
    let mut scan_keys = tenant_keys(purpose, tenant)?;
    scan(relations.keys, relations.keys_by_version, &mut scan_keys, |row| {
        rows.push(key_row(row)?);
        Ok(true)
    })?;
    Ok(rows)
}

/// All master keys that wrap a data key of this database, or did.
pub fn master_keys() -> Result<Vec<MasterKeyRow>, Error> {
    let relations = Relations::resolve()?;
    let mut rows = Vec::new();
    scan(relations.master_keys, pg_sys::InvalidOid, &mut [], |row| {
        rows.push(MasterKeyRow {
            fingerprint: Fingerprint(row.sixteen_bytes(master_keys::FINGERPRINT)?),
            is_current: row.boolean(master_keys::IS_CURRENT)?,
            is_retired: row.datum(master_keys::RETIRED_AT).is_some(),
        });
        Ok(true)
    })?;
    Ok(rows)
}

/// Column numbers of `fieldcrypt.master_keys`.
mod master_keys {
    pub const FINGERPRINT: i16 = 1;
    pub const IS_CURRENT: i16 = 2;
    pub const RETIRED_AT: i16 = 4;
}

/// Whether the database has any data key.
pub fn has_keys() -> Result<bool, Error> {
    has_rows(Relations::resolve()?.keys)
}

/// Whether the database has a key that is not destroyed, of whatever purpose; `None` if no table of the
/// extension has the name of that of keys. Also while the table is being dropped, when its indexes may be gone already.
pub fn has_living_keys() -> Result<Option<bool>, Error> {
    let Some(table) = relations::key_table() else { return Ok(None) };
    let mut is_one_alive = false;
    scan(table, pg_sys::InvalidOid, &mut [], |row| {
        is_one_alive = KeyState::parse(row.bytes(keys::STATE)?) != Some(KeyState::Destroyed);
        Ok(!is_one_alive)
    })?;
    Ok(Some(is_one_alive))
}

fn key_row(row: &tuple::Row<'_>) -> Result<KeyRow, Error> {
    let damaged = |what: &str| Error::KeyTable(format!("encryption_keys has a row with {what}"));
    Ok(KeyRow {
        key_id: KeyId::new(row.bigint(keys::KEY_ID)?)
            .ok_or_else(|| damaged("a key id that is not positive"))?,
        tenant: row.bytes(keys::TENANT)?.to_vec(),
        purpose: row.bytes(keys::PURPOSE)?.to_vec(),
        version: row.integer(keys::VERSION)?,
        state: KeyState::parse(row.bytes(keys::STATE)?)
            .ok_or_else(|| damaged("a state that this version does not know"))?,
        algorithm: row.bytes(keys::ALGORITHM)?.to_vec(),
        wrapped_key: row.optional_bytes(keys::WRAPPED_KEY)?.map(<[u8]>::to_vec),
        master_key: Fingerprint(row.sixteen_bytes(keys::MASTER_KEY)?),
        check: row.sixteen_bytes(keys::CHECK)?,
        suspended_from: row.optional_bytes(keys::SUSPENDED_FROM)?.and_then(KeyState::parse),
        destroy_after: row.optional_bigint(keys::DESTROY_AFTER)?,
        uncommitted: row.is_of_current_transaction(),
    })
}

pub(super) fn tenant_keys(
    purpose: Purpose,
    tenant: &[u8],
) -> Result<[pg_sys::ScanKeyData; 2], Error> {
    let purpose = text_key(keys::PURPOSE, purpose.name().as_bytes())?;
    Ok([text_key(keys::TENANT, tenant)?, purpose])
}

/// Column numbers of `fieldcrypt.encryption_keys`, in the order of `sql/keys.sql`.
mod keys {
    pub const KEY_ID: i16 = 1;
    pub const TENANT: i16 = 2;
    pub const PURPOSE: i16 = 3;
    pub const VERSION: i16 = 4;
    pub const STATE: i16 = 5;
    pub const ALGORITHM: i16 = 6;
    pub const WRAPPED_KEY: i16 = 7;
    pub const MASTER_KEY: i16 = 8;
    pub const CHECK: i16 = 9;
    pub const SUSPENDED_FROM: i16 = 13;
    pub const DESTROY_AFTER: i16 = 15;
}
