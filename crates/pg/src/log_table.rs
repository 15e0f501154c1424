//! The audit log as a table: its ids, and the lock of those who seal it.

use std::ffi::c_int;

use fieldcrypt_error::Error;
use pgrx::pg_sys::SysCacheIdentifier::SEQRELID;
use pgrx::pg_sys::{self, Datum, Oid};

use super::relations::Relations;
use super::scan::scan;
use super::{catalogs, invalidations, syscache};

/// The first id that this database's own sequence dealt to the audit log: restored rows have lower ones.
pub fn first_own_log_id() -> Result<i64, Error> {
    // A bigint that is never NULL.
    use catalogs::Anum_pg_sequence_seqstart as SEQSTART;
    let sequence = Relations::resolve()?.log_sequence;
    // SAFETY: a cache of sequences by oid.
    let start = unsafe {
        syscache::with_row(SEQRELID, &[Datum::from(sequence)], |row| {
            pg_sys::SysCacheGetAttr(SEQRELID as c_int, row, SEQSTART, &mut false).value() as i64
        })
    };
    start.ok_or(Error::NotInstalled)
}

/// The next id of the audit log.
pub fn next_log_id() -> Result<i64, Error> {
    unsafe extern "C-unwind" {
        fn nextval_internal(sequence: Oid, check_permissions: bool) -> i64;
    }
    let sequence = Relations::resolve()?.log_sequence;
    // SAFETY: nextval without a check of rights, which whoever is recorded has not; the guard turns what
    // Postgres raises into a panic, and its closure holds nothing that needs dropping.
    Ok(unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| nextval_internal(sequence, false)) })
}

/// Whether a partition of the audit log has rows with lower ids than this.
pub fn has_log_rows_before(partition: Oid, id: i64) -> Result<bool, Error> {
    const ID: i16 = 1;
    let mut found = false;
    scan(partition, pg_sys::InvalidOid, &mut [], |row| {
        found = row.bigint(ID)? < id;
        Ok(!found)
    })?;
    Ok(found)
}

/// Waits until nobody else seals the audit log, or empties parts of it, until the end of the transaction.
pub fn lock_sealing() -> Result<(), Error> {
    take_sealing(false).map(|_| ())
}

/// The same without waiting; whether nobody else does.
pub fn try_lock_sealing() -> Result<bool, Error> {
    take_sealing(true)
}

fn take_sealing(at_once: bool) -> Result<bool, Error> {
    let tag = pg_sys::LOCKTAG {
        // SAFETY: a variable of the backend.
        locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
        locktag_field2: Relations::resolve()?.checkpoints.to_u32(),
        locktag_field3: 0,
        locktag_field4: 0,
        locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
    };
    // SAFETY: takes a lock of the transaction.
    let taken = unsafe { pg_sys::LockAcquire(&tag, pg_sys::ExclusiveLock as i32, false, at_once) };
    if taken == pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL {
        return Ok(false);
    }
    // What who had it before has done.
    invalidations::accept_invalidations();
    Ok(true)
}
