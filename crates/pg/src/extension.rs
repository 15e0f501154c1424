//! The extension as an object that can be dropped.

use pgrx::pg_sys;

use super::invalidations;

/// Whether the extension is there, and stays so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extension {
    /// It is, until the end of the transaction.
    Held,
    /// Somebody is dropping it, or waits to.
    Wanted,
    /// It is not in this database.
    NotInstalled,
}

/// Keeps the extension from being dropped until the end of the transaction, without waiting for anybody.
///
/// DROP EXTENSION, and DROP OWNED by `claim`, lock the extension before all that it consists of. So who holds this, before any of its
/// tables, meets no DROP with one of them in hand, in whatever order it goes on.
pub fn hold() -> Extension {
    let Some(oid) = oid() else { return Extension::NotInstalled };
    let tag = pg_sys::LOCKTAG {
        // SAFETY: a variable of the backend.
        locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
        locktag_field2: pg_sys::ExtensionRelationId.to_u32(),
        locktag_field3: oid.to_u32(),
        locktag_field4: 0,
        locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
    };
    // SAFETY: takes a lock of the transaction, if that needs no waiting.
    let taken = unsafe { pg_sys::LockAcquire(&tag, pg_sys::AccessShareLock as i32, false, true) };
    if taken == pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL {
        return Extension::Wanted;
    }
    // It may have gone just before.
    invalidations::accept_invalidations();
    if self::oid() == Some(oid) { Extension::Held } else { Extension::NotInstalled }
}

/// Locks the extension as DROP EXTENSION does, until the end of the transaction.
pub fn claim() {
    let Some(oid) = oid() else { return };
    let mode = pg_sys::AccessExclusiveLock as pg_sys::LOCKMODE;
    // SAFETY: takes a lock of the transaction.
    unsafe { pg_sys::LockDatabaseObject(pg_sys::ExtensionRelationId, oid, 0, mode) }
}

/// Its number, if it is in this database.
pub(super) fn oid() -> Option<pg_sys::Oid> {
    // SAFETY: a look-up by name that gives InvalidOid if there is none.
    let oid = unsafe { pg_sys::get_extension_oid(c"pg_fieldcrypt".as_ptr(), true) };
    (oid != pg_sys::InvalidOid).then_some(oid)
}
