//! New data keys: the first of a tenant, and the next version.
//!
//! Both wait until no other transaction has a key of the tenant in flight, and read again then: two
//! sessions that race for a first key get the same one.

use fieldcrypt_envelope::KeyId;

use super::states::{self, Change};
use crate::audit;
use crate::error::Error;
use crate::events::Event;
use crate::keyring;
use crate::pg::key_table::{self, KeyRow, Purpose};
use crate::pg::{encoding, key_locks, nodes, transaction};
use crate::{settings, usage};

/// Makes the tenant's first key because a value is to be encrypted for it, if keys are made so.
pub fn first_key_on_use(tenant: &[u8]) -> Result<KeyRow, Error> {
    if settings::creates_keys_on_use() || has_versions(tenant)? {
        return first_key(tenant);
    }
    settings::refuse_as_tenant(tenant)?;
    nodes::refuse_unless_made_here(Purpose::Field)?;
    Err(no_key_yet(tenant))
}

/// Refuses a tenant that never had a key, where only `create_key` makes the first one: the name may be mistyped.
pub fn refuse_unknown_tenant(tenant: &[u8]) -> Result<(), Error> {
    refuse_unknown_name(tenant)?;
    if settings::creates_keys_on_use() || has_versions(tenant)? {
        return Ok(());
    }
    Err(no_key_yet(tenant))
}

/// Makes the tenant's first key. If another session made one meanwhile, that is the one. A tenant
/// whose keys are all suspended or retired gets none: that was somebody's decision.
fn first_key(tenant: &[u8]) -> Result<KeyRow, Error> {
    refuse_unknown_name(tenant)?;
    if let Err(error) = transaction::refuse_unless_writable() {
        // Where the tenant has keys and none may encrypt, that is the better reason.
        let is_retired =
            has_versions(tenant)? && key_table::active_key(Purpose::Field, tenant)?.is_none();
        return Err(if is_retired { no_active_key(tenant) } else { error });
    }
    key_locks::alone_with_tenant(Purpose::Field, tenant, || {
        if let Some(row) = key_table::active_key(Purpose::Field, tenant)? {
            return Ok(row);
        }
        if has_versions(tenant)? {
            return Err(no_active_key(tenant));
        }
        let key_id = insert(Purpose::Field, tenant, 1, None, Event::KeyCreated)?;
        keyring::written(key_id)
    })
}

fn has_versions(tenant: &[u8]) -> Result<bool, Error> {
    Ok(key_table::newest_version(Purpose::Field, tenant)?.is_some())
}

/// The tenant's active key, made if the tenant never had one.
pub fn ensure_active(tenant: &[u8]) -> Result<KeyId, Error> {
    match key_table::active_key(Purpose::Field, tenant)? {
        Some(row) => Ok(row.key_id),
        None => first_key(tenant).map(|row| row.key_id),
    }
}

/// The active key of loose values, made if there never was one.
pub fn ensure_loose() -> Result<KeyId, Error> {
    let (purpose, tenant) = (Purpose::Loose, keyring::LOOSE_TENANT);
    if let Some(row) = key_table::active_key(purpose, tenant)? {
        return Ok(row.key_id);
    }
    transaction::refuse_unless_writable()?;
    key_locks::alone_with_tenant(purpose, tenant, || {
        if let Some(row) = key_table::active_key(purpose, tenant)? {
            return Ok(row.key_id);
        }
        if key_table::newest_version(purpose, tenant)?.is_some() {
            return Err(no_active_key(tenant));
        }
        insert(purpose, tenant, 1, None, Event::KeyCreated)
    })
}

/// What a rotation did.
pub struct Rotation {
    /// The key that was active.
    pub old: Option<KeyId>,
    /// The key that is active now.
    pub new: KeyId,
}

/// Deactivates the tenant's active key and makes the next version. With `force` also where no key is
/// active; or none was ever made, unless only `create_key` makes a tenant's first.
pub fn rotate(tenant: &[u8], reason: Option<&[u8]>, force: bool) -> Result<Rotation, Error> {
    transaction::refuse_unless_writable()?;
    if tenant == keyring::LOOSE_TENANT && !has_versions(tenant)? {
        return rotate_loose(reason, force);
    }
    refuse_unknown_name(tenant)?;
    key_locks::alone_with_tenant(Purpose::Field, tenant, || {
        let active = key_table::active_key(Purpose::Field, tenant)?;
        if active.is_none() && !has_versions(tenant)? {
            let may_make = force && settings::creates_keys_on_use();
            return if may_make {
                replace(Purpose::Field, tenant, None, reason)
            } else {
                Err(no_key_yet(tenant))
            };
        }
        if active.is_none() && !force {
            return Err(no_active_key(tenant));
        }
        replace(Purpose::Field, tenant, active, reason)
    })
}

/// The same of the key of loose values. The first is made by who has columns that take plaintext.
fn rotate_loose(reason: Option<&[u8]>, force: bool) -> Result<Rotation, Error> {
    let (purpose, tenant) = (Purpose::Loose, keyring::LOOSE_TENANT);
    key_locks::alone_with_tenant(purpose, tenant, || {
        let active = key_table::active_key(purpose, tenant)?;
        if active.is_none() && key_table::newest_version(purpose, tenant)?.is_none() {
            return Err(Error::NoLooseKey);
        }
        if active.is_none() && !force {
            return Err(no_active_key(tenant));
        }
        replace(purpose, tenant, active, reason)
    })
}

/// The same if this key is the active one, as it was when somebody decided to rotate it. Two who
/// decide so at once rotate it once. The key may be one of any purpose.
pub fn rotate_if_active(
    tenant: &[u8],
    reason: Option<&[u8]>,
    expected: KeyId,
) -> Result<Option<Rotation>, Error> {
    transaction::refuse_unless_writable()?;
    let Some(row) = key_table::key_by_id(expected)? else { return Ok(None) };
    let purpose = row.purpose()?;
    key_locks::alone_with_tenant(purpose, tenant, || {
        match key_table::active_key(purpose, tenant)? {
            Some(row) if row.key_id == expected => {
                replace(purpose, tenant, Some(row), reason).map(Some)
            }
            _ => Ok(None),
        }
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
    let version = key_table::newest_version(purpose, tenant)?.unwrap_or(0) + 1;
    let event = if version == 1 { Event::KeyCreated } else { Event::KeyRotated };
    insert(purpose, tenant, version, reason, event)
}

fn insert(
    purpose: Purpose,
    tenant: &[u8],
    version: i32,
    reason: Option<&[u8]>,
    event: Event,
) -> Result<KeyId, Error> {
    let key_id = keyring::make(purpose, tenant, version)?;
    audit::record_key(event, tenant, key_id, reason)?;
    if purpose == Purpose::Field {
        usage::note_key_made(tenant);
    }
    Ok(key_id)
}

fn no_key_yet(tenant: &[u8]) -> Error {
    Error::NoKeyYet {
        tenant: encoding::lossy(tenant),
        is_made_on_use: settings::creates_keys_on_use(),
    }
}

fn no_active_key(tenant: &[u8]) -> Error {
    Error::NoActiveKey { tenant: encoding::lossy(tenant) }
}

/// Refuses what no new tenant may be called. A name that has keys, from an import or a time before this was refused,
/// stays its tenant's: values, rotation and shredding go on with it.
fn refuse_unknown_name(tenant: &[u8]) -> Result<(), Error> {
    match settings::refuse_as_tenant(tenant) {
        Err(error) if !has_versions(tenant)? => Err(error),
        _ => Ok(()),
    }
}
