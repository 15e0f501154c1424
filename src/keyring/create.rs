//! New data keys: the first of a tenant, and the next version.
//!
//! Both wait until no other transaction has a key of the tenant in flight, and read again then: two
//! sessions that race for a first key get the same one.

use fieldcrypt_envelope::{DataKey, Fingerprint, KeyId, KeyState};
use fieldcrypt_locked_memory::{DEEP, with_scrubbed_stack};

use super::states::{self, Change};
use super::{AUDIT_TENANT, guard, with_metadata};
use crate::audit::{self, Event};
use crate::error::Error;
use crate::master_key;
use crate::pg::catalog::{self, Alone, KeyRow, MasterKeyRow, MasterKeysLock, Purpose};
use crate::pg::spi::{self, Parameter};
use crate::pg::{encoding, session};
use crate::settings::MAX_TENANT_BYTES;
use crate::usage;

/// Makes the tenant's first key. If another session made one meanwhile, that is the one. A tenant
/// whose keys are all suspended or retired gets none: that was somebody's decision.
pub fn first_key(tenant: &[u8]) -> Result<KeyRow, Error> {
    if let Err(error) = session::refuse_unless_writable() {
        // Where the tenant has keys and none may encrypt, that is the better reason.
        let is_retired =
            has_versions(tenant)? && catalog::active_key(Purpose::Field, tenant)?.is_none();
        return Err(if is_retired { no_active_key(tenant) } else { error });
    }
    check_name(tenant)?;
    catalog::alone_with_tenant(Purpose::Field, tenant, || {
        if let Some(row) = catalog::active_key(Purpose::Field, tenant)? {
            return Ok(row);
        }
        if has_versions(tenant)? {
            return Err(no_active_key(tenant));
        }
        let key_id = insert(Purpose::Field, tenant, 1, None, Event::KeyCreated)?;
        written(key_id)
    })
}

fn has_versions(tenant: &[u8]) -> Result<bool, Error> {
    Ok(catalog::newest_version(Purpose::Field, tenant)?.is_some())
}

/// What came of an attempt to make the first key for the audit log.
pub enum FirstAuditKey {
    /// It is there.
    Made(KeyRow),
    /// This database needs none yet, or must not have another.
    NotNow,
    /// This transaction, which has not ended, has made one.
    InFlight(pgrx::pg_sys::TransactionId),
}

/// Makes the first key that authenticates rows of the audit log, in a database that has other keys. One
/// without keys may be about to receive those of a dump, and nothing is restored over keys.
pub fn first_audit_key() -> Result<FirstAuditKey, Error> {
    session::refuse_unless_writable()?;
    if !catalog::has_keys()? {
        return Ok(FirstAuditKey::NotNow);
    }
    let mut work = Some(|| {
        if let Some(row) = catalog::active_key(Purpose::Audit, AUDIT_TENANT)? {
            return Ok(FirstAuditKey::Made(row));
        }
        // In the middle of a rotation the last one goes on.
        let versions = catalog::keys_of_tenant(Purpose::Audit, AUDIT_TENANT)?;
        if !versions.is_empty() {
            let usable = versions.into_iter().filter(|row| row.state == KeyState::Deactivated);
            let last = usable.max_by_key(|row| row.version);
            return Ok(last.map_or(FirstAuditKey::NotNow, FirstAuditKey::Made));
        }
        let key_id = insert(Purpose::Audit, AUDIT_TENANT, 1, None, Event::KeyCreated)?;
        written(key_id).map(FirstAuditKey::Made)
    });
    Ok(match catalog::alone_unless_in_flight(Purpose::Audit, AUDIT_TENANT, &mut work)? {
        Alone::Done(outcome) => outcome,
        Alone::InFlight(transaction) => FirstAuditKey::InFlight(transaction),
    })
}

/// The tenant's active key, made if the tenant never had one.
pub fn ensure_active(tenant: &[u8]) -> Result<KeyId, Error> {
    match catalog::active_key(Purpose::Field, tenant)? {
        Some(row) => Ok(row.key_id),
        None => first_key(tenant).map(|row| row.key_id),
    }
}

/// What a rotation did.
pub struct Rotation {
    /// The key that was active.
    pub old: Option<KeyId>,
    /// The key that is active now.
    pub new: KeyId,
}

/// Deactivates the tenant's active key and makes the next version. With `force` also where no key is
/// active, or none was ever made.
pub fn rotate(tenant: &[u8], reason: Option<&[u8]>, force: bool) -> Result<Rotation, Error> {
    session::refuse_unless_writable()?;
    check_name(tenant)?;
    catalog::alone_with_tenant(Purpose::Field, tenant, || {
        let active = catalog::active_key(Purpose::Field, tenant)?;
        if active.is_none() && !force {
            return Err(no_active_key(tenant));
        }
        replace(Purpose::Field, tenant, active, reason)
    })
}

/// The same if this key is the active one, as it was when somebody decided to rotate it. Two who
/// decide so at once rotate it once. The key may be one of any purpose.
pub fn rotate_if_active(
    tenant: &[u8],
    reason: Option<&[u8]>,
    expected: KeyId,
) -> Result<Option<Rotation>, Error> {
    session::refuse_unless_writable()?;
    check_name(tenant)?;
    let Some(row) = catalog::key_by_id(expected)? else { return Ok(None) };
    let purpose = row.purpose()?;
    catalog::alone_with_tenant(purpose, tenant, || match catalog::active_key(purpose, tenant)? {
        Some(row) if row.key_id == expected => {
            replace(purpose, tenant, Some(row), reason).map(Some)
        }
        _ => Ok(None),
    })
}

fn replace(
    purpose: Purpose,
    tenant: &[u8],
    old: Option<KeyRow>,
    reason: Option<&[u8]>,
) -> Result<Rotation, Error> {
    if let Some(old) = &old {
        states::change(old, Change::Deactivate, reason)?;
    }
    let new = next_version(purpose, tenant, reason)?;
    Ok(Rotation { old: old.map(|old| old.key_id), new })
}

/// Makes the tenant's next version, which is active: the one before no longer is. The caller is alone
/// with the tenant.
pub fn next_version(
    purpose: Purpose,
    tenant: &[u8],
    reason: Option<&[u8]>,
) -> Result<KeyId, Error> {
    let version = catalog::newest_version(purpose, tenant)?.unwrap_or(0) + 1;
    let event = if version == 1 { Event::KeyCreated } else { Event::KeyRotated };
    insert(purpose, tenant, version, reason, event)
}

fn no_active_key(tenant: &[u8]) -> Error {
    Error::NoActiveKey { tenant: encoding::lossy(tenant) }
}

fn check_name(tenant: &[u8]) -> Result<(), Error> {
    if tenant.is_empty() || tenant.len() > MAX_TENANT_BYTES {
        return Err(Error::TenantName);
    }
    Ok(())
}

fn written(key_id: KeyId) -> Result<KeyRow, Error> {
    catalog::key_by_id(key_id)?
        .ok_or_else(|| Error::Internal("a key that was just written can't be found".into()))
}

fn insert(
    purpose: Purpose,
    tenant: &[u8],
    version: i32,
    reason: Option<&[u8]>,
    event: Event,
) -> Result<KeyId, Error> {
    let master_key = current_master_key()?;
    let key_id = unused_key_id()?;
    let (wrapped, check) = with_scrubbed_stack::<DEEP, _>(|| {
        let data_key = DataKey::generate()?;
        let wrapped = with_metadata(purpose, key_id, tenant, version, |metadata| {
            master_key::wrap(master_key, &data_key, metadata)
        })?;
        Ok::<_, Error>((wrapped, data_key.check(key_id)))
    })?;
    session::as_owner(|| {
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
    audit::record_key(event, tenant, key_id, reason)?;
    if purpose == Purpose::Field {
        usage::note_key_made(tenant);
    }
    Ok(key_id)
}

fn unused_key_id() -> Result<KeyId, Error> {
    loop {
        let key_id = KeyId::generate()?;
        if catalog::key_by_id(key_id)?.is_none() {
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
    catalog::lock_master_keys(MasterKeysLock::MakeDataKey)?;
    let mut known = catalog::master_keys()?;
    if known.is_empty() {
        catalog::lock_master_keys(MasterKeysLock::FirstMasterKey)?;
        known = catalog::master_keys()?;
    }
    if known.is_empty() {
        let first = *loaded.first().ok_or(Error::NoMasterKey)?;
        if catalog::has_keys()? {
            return Err(Error::KeyTable(
                "encryption_keys has rows and master_keys has none".into(),
            ));
        }
        session::as_owner(|| {
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
