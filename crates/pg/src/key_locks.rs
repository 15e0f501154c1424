//! Locks of those who make and change keys.

use fieldcrypt_error::Error;
use pgrx::pg_sys::{self, Oid};

use super::key_table::{Purpose, tenant_keys};
use super::memory::Filled;
use super::relations::Relations;
use super::scan::scan_with;
use super::transaction;

/// Runs `work` while nobody else makes or rotates a key of the tenant, and no other transaction has one
/// in flight.
///
/// The lock (an object lock, not an advisory one, which SQL could take away) lasts for `work` only;
/// until the end of the transaction the row that it writes is the lock: who finds one in flight waits
/// for its transaction. So a bulk load that makes keys for many tenants does not fill the server's lock
/// table, and two of them get in each other's way only over the same tenant.
///
/// `master_keys` is locked first, as by all who change keys: who changes a key and then makes one would
/// otherwise take the two tables in the wrong order, and deadlock with an import.
pub fn alone_with_tenant<R>(
    purpose: Purpose,
    tenant: &[u8],
    work: impl FnOnce() -> Result<R, Error>,
) -> Result<R, Error> {
    let mut work = Some(work);
    loop {
        match alone_unless_in_flight(purpose, tenant, &mut work)? {
            Alone::Done(result) => return Ok(result),
            Alone::InFlight(transaction) => transaction::wait_for(transaction),
        }
    }
}

/// What came of an attempt to be alone with a tenant.
pub enum Alone<R> {
    /// The work was done.
    Done(R),
    /// It was not, since this transaction has a key of the tenant in flight.
    InFlight(pg_sys::TransactionId),
}

/// The same without waiting for a transaction that has a key in flight.
pub fn alone_unless_in_flight<R, W: FnOnce() -> Result<R, Error>>(
    purpose: Purpose,
    tenant: &[u8],
    work: &mut Option<W>,
) -> Result<Alone<R>, Error> {
    let relations = Relations::resolve()?;
    lock_master_keys(MasterKeysLock::MakeDataKey)?;
    // FNV-1a; two tenants of equal hash only wait for each other.
    let hash = purpose
        .name()
        .bytes()
        .chain(tenant.iter().copied())
        .fold(0x811C_9DC5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let object = Oid::from(hash);
    let mode = pg_sys::ExclusiveLock as pg_sys::LOCKMODE;
    // SAFETY: takes a lock and processes invalidation messages, both allowed in a transaction.
    unsafe { pg_sys::LockDatabaseObject(relations.keys, object, 0, mode) };
    let result = match transaction_in_flight(purpose, tenant) {
        Ok(None) => match work.take() {
            Some(work) => work().map(Alone::Done),
            None => Err(Error::Internal("work is done once".into())),
        },
        Ok(Some(transaction)) => Ok(Alone::InFlight(transaction)),
        Err(error) => Err(error),
    };
    // SAFETY: releases the lock taken above; after a Postgres error the abort does.
    unsafe { pg_sys::UnlockDatabaseObject(relations.keys, object, 0, mode) };
    result
}

/// Another transaction in progress that has written a key of the tenant.
fn transaction_in_flight(
    purpose: Purpose,
    tenant: &[u8],
) -> Result<Option<pg_sys::TransactionId>, Error> {
    let relations = Relations::resolve()?;
    let mut scan_keys = tenant_keys(purpose, tenant)?;
    // A dirty snapshot sees rows in flight and says whose they are.
    let mut dirty = Filled::<pg_sys::SnapshotData>::new();
    let snapshot = dirty.place();
    // SAFETY: zero is as good for the rest.
    unsafe { (*snapshot).snapshot_type = pg_sys::SnapshotType::SNAPSHOT_DIRTY };
    let mut found = None;
    scan_with(snapshot, relations.keys, relations.keys_by_version, &mut scan_keys, |_| {
        // SAFETY: the snapshot outlives the scan, which writes these for each row it gives.
        let (inserter, updater) = unsafe { ((*snapshot).xmin, (*snapshot).xmax) };
        found = [inserter, updater].into_iter().find(|xid| *xid != pg_sys::InvalidTransactionId);
        Ok(found.is_none())
    })?;
    Ok(found)
}

/// How `master_keys` is locked, until the end of the transaction.
#[derive(Clone, Copy)]
pub enum MasterKeysLock {
    /// By whoever makes a data key: conflicts with a change of the current master key.
    MakeDataKey = pg_sys::RowShareLock as isize,
    /// By whoever writes the first row.
    FirstMasterKey = pg_sys::ShareRowExclusiveLock as isize,
    /// By whoever makes another one current: waits for all who make a data key, prepared
    /// transactions too.
    Switch = pg_sys::ExclusiveLock as isize,
}

/// Locks `master_keys`.
pub fn lock_master_keys(lock: MasterKeysLock) -> Result<(), Error> {
    let relations = Relations::resolve()?;
    // SAFETY: takes a lock and processes invalidation messages, both allowed in a transaction.
    unsafe { pg_sys::LockRelationOid(relations.master_keys, lock as pg_sys::LOCKMODE) };
    Ok(())
}
