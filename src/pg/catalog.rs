//! The one place that opens `encryption_keys` and `master_keys` for reading.
//!
//! They are read as Postgres reads its own catalogs: by index, under a fresh catalog snapshot, so
//! that a REPEATABLE READ transaction and a parallel worker see the newest committed key too, and a
//! look-up costs a few microseconds, not an SPI call.

use std::cell::Cell;
use std::ffi::{CStr, c_int};
use std::mem::MaybeUninit;

use fieldcrypt_envelope::{Fingerprint, KeyId, KeyState};
use pgrx::pg_sys::{self, Datum, Oid};

use super::values::Varlena;
use super::{callbacks, schemas, session, tuple};
use crate::error::Error;

/// What a data key is for. No key serves two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Encrypts the fields of a tenant.
    Field,
    /// Authenticates the rows of the audit log.
    Audit,
}

impl Purpose {
    /// As column `purpose` says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Field => "field",
            Self::Audit => "audit",
        }
    }

    /// Column `algorithm` of the keys that this version makes and uses.
    pub fn algorithm(self) -> &'static str {
        match self {
            Self::Field => "XAES-256-GCM",
            Self::Audit => "HMAC-SHA256",
        }
    }

    /// The purpose of that name.
    pub fn parse(name: &[u8]) -> Option<Self> {
        [Self::Field, Self::Audit].into_iter().find(|purpose| purpose.name().as_bytes() == name)
    }
}

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
    /// What the key is for, if this version knows it and the algorithm.
    pub fn purpose(&self) -> Result<Purpose, Error> {
        Purpose::parse(&self.purpose)
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

/// Whether a relation has any row that a fresh snapshot sees.
pub fn has_rows(relation: Oid) -> Result<bool, Error> {
    let mut found = false;
    scan(relation, pg_sys::InvalidOid, &mut [], |_| {
        found = true;
        Ok(false)
    })?;
    Ok(found)
}

/// The first id that this database's own sequence dealt to the audit log: restored rows have lower ones.
pub fn first_own_log_id() -> Result<i64, Error> {
    /// `Anum_pg_sequence_seqstart`, a bigint that is never NULL.
    const SEQSTART: pg_sys::AttrNumber = 3;
    let sequence = Relations::resolve()?.log_sequence;
    // SAFETY: a row of pg_sequence, used until it is released.
    unsafe {
        let row = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::SEQRELID as c_int,
            Datum::from(sequence),
        );
        if row.is_null() {
            return Err(Error::NotInstalled);
        }
        let mut is_null = false;
        let cache = pg_sys::SysCacheIdentifier::SEQRELID as c_int;
        let start = pg_sys::SysCacheGetAttr(cache, row, SEQSTART, &mut is_null);
        pg_sys::ReleaseSysCache(row);
        Ok(start.value() as i64)
    }
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

/// Whether the database has any data key.
pub fn has_keys() -> Result<bool, Error> {
    has_rows(Relations::resolve()?.keys)
}

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
            Alone::InFlight(transaction) => session::wait_for(transaction),
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
    let mut dirty = pg_sys::SnapshotData {
        snapshot_type: pg_sys::SnapshotType::SNAPSHOT_DIRTY,
        ..Default::default()
    };
    let snapshot = &raw mut dirty;
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

/// Waits until nobody else seals the audit log, or empties parts of it, until the end of the transaction.
pub fn lock_sealing() -> Result<(), Error> {
    let relation = Relations::resolve()?.checkpoints;
    let mode = pg_sys::ExclusiveLock as pg_sys::LOCKMODE;
    // SAFETY: takes a lock and processes invalidation messages, both allowed in a transaction.
    unsafe { pg_sys::LockDatabaseObject(relation, pg_sys::InvalidOid, 0, mode) };
    Ok(())
}

/// The role that owns the key table, and with it the extension.
pub fn owner_of_keys() -> Result<Oid, Error> {
    let relations = Relations::resolve()?;
    // SAFETY: opens the relation with a lock, reads its catalog row, closes it.
    unsafe {
        let relation =
            pg_sys::table_open(relations.keys, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        let owner = (*(*relation).rd_rel).relowner;
        pg_sys::table_close(relation, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        Ok(owner)
    }
}

/// The table whose object locks tell which runs of re-encryption are under way.
pub fn runs_relation() -> Result<Oid, Error> {
    Ok(Relations::resolve()?.runs)
}

/// The type `fieldcrypt.encrypted`.
pub fn encrypted_type() -> Result<Oid, Error> {
    Ok(Relations::resolve()?.encrypted_type)
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

/// Column numbers of `fieldcrypt.master_keys`.
mod master_keys {
    pub const FINGERPRINT: i16 = 1;
    pub const IS_CURRENT: i16 = 2;
    pub const RETIRED_AT: i16 = 4;
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
        wrapped_key: row.optional_bytes(keys::WRAPPED_KEY).map(<[u8]>::to_vec),
        master_key: Fingerprint(row.sixteen_bytes(keys::MASTER_KEY)?),
        check: row.sixteen_bytes(keys::CHECK)?,
        suspended_from: row.optional_bytes(keys::SUSPENDED_FROM).and_then(KeyState::parse),
        destroy_after: row.datum(keys::DESTROY_AFTER).map(|datum| datum.value() as i64),
        uncommitted: row.is_of_current_transaction(),
    })
}

#[derive(Clone, Copy)]
struct Relations {
    keys: Oid,
    keys_by_id: Oid,
    active_keys: Oid,
    keys_by_version: Oid,
    master_keys: Oid,
    encrypted_type: Oid,
    log_sequence: Oid,
    runs: Oid,
    checkpoints: Oid,
}

impl Relations {
    /// Looks the names up once, and again after every invalidation of `encryption_keys` (DROP
    /// EXTENSION and REINDEX CONCURRENTLY give new ids).
    fn resolve() -> Result<Self, Error> {
        thread_local! { static KNOWN: Cell<Option<(u64, Relations)>> = const { Cell::new(None) } }
        session::accept_invalidations();
        if let Some((generation, relations)) = KNOWN.get()
            && generation == callbacks::generation()
        {
            return Ok(relations);
        }
        let relations = Self::look_up().ok_or(Error::NotInstalled)?;
        callbacks::watch_relation(relations.keys);
        KNOWN.set(Some((callbacks::generation(), relations)));
        Ok(relations)
    }

    fn look_up() -> Option<Self> {
        let schema = schemas::oid(schemas::USERS)?;
        let internals = schemas::oid(schemas::INTERNAL)?;
        let relation_in = |schema: Oid, name: &CStr| {
            // SAFETY: a catalog look-up by name that answers InvalidOid if there is none.
            valid(unsafe { pg_sys::get_relname_relid(name.as_ptr(), schema) })
        };
        let relation = |name| relation_in(schema, name);
        let type_oid = {
            // SAFETY: as above; the syscache key is a name and a schema.
            let oid = unsafe {
                pg_sys::GetSysCacheOid(
                    pg_sys::SysCacheIdentifier::TYPENAMENSP as c_int,
                    pg_sys::Anum_pg_type_oid as pg_sys::AttrNumber,
                    Datum::from(c"encrypted".as_ptr()),
                    Datum::from(schema),
                    Datum::null(),
                    Datum::null(),
                )
            };
            valid(oid)?
        };
        Some(Self {
            keys: relation(c"encryption_keys")?,
            keys_by_id: relation(c"encryption_keys_pkey")?,
            active_keys: relation(c"encryption_keys_active")?,
            keys_by_version: relation(c"encryption_keys_version")?,
            master_keys: relation(c"master_keys")?,
            encrypted_type: type_oid,
            log_sequence: relation_in(internals, c"audit_log_id_seq")?,
            runs: relation_in(internals, c"reencryption_chunks")?,
            checkpoints: relation(c"audit_checkpoints")?,
        })
    }
}

fn valid(oid: Oid) -> Option<Oid> {
    (oid != pg_sys::InvalidOid).then_some(oid)
}

fn first<R>(
    relation: Oid,
    index: Oid,
    scan_keys: &mut [pg_sys::ScanKeyData],
    read: impl Fn(&tuple::Row<'_>) -> Result<R, Error>,
) -> Result<Option<R>, Error> {
    let mut found = None;
    scan(relation, index, scan_keys, |row| {
        found = Some(read(row)?);
        Ok(false)
    })?;
    Ok(found)
}

/// Calls `visit` with the rows that a fresh catalog snapshot sees, until it answers `false`.
fn scan(
    relation: Oid,
    index: Oid,
    scan_keys: &mut [pg_sys::ScanKeyData],
    visit: impl FnMut(&tuple::Row<'_>) -> Result<bool, Error>,
) -> Result<(), Error> {
    scan_with(std::ptr::null_mut(), relation, index, scan_keys, visit)
}

fn scan_with(
    snapshot: pg_sys::Snapshot,
    relation: Oid,
    index: Oid,
    scan_keys: &mut [pg_sys::ScanKeyData],
    mut visit: impl FnMut(&tuple::Row<'_>) -> Result<bool, Error>,
) -> Result<(), Error> {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: the sequence of every catalog scan in Postgres. A NULL snapshot asks for a catalog
    // snapshot, which for a table without a syscache is taken anew. The row is used only before the
    // next `systable_getnext`. If Postgres raises an error in between, the transaction's resource
    // owner releases scan, relation and snapshot.
    unsafe {
        let heap = pg_sys::table_open(relation, lock);
        if (*heap).rd_tableam.is_null() {
            pg_sys::table_close(heap, lock);
            return Err(Error::Internal("a relation without storage can't be scanned".into()));
        }
        let descriptor = pg_sys::systable_beginscan(
            heap,
            index,
            index != pg_sys::InvalidOid,
            snapshot,
            scan_keys.len() as c_int,
            scan_keys.as_mut_ptr(),
        );
        let mut outcome = Ok(());
        loop {
            let tuple = pg_sys::systable_getnext(descriptor);
            if tuple.is_null() {
                break;
            }
            match visit(&tuple::Row::deform(tuple, (*heap).rd_att)) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        pg_sys::systable_endscan(descriptor);
        pg_sys::table_close(heap, lock);
        outcome
    }
}

fn tenant_keys(purpose: Purpose, tenant: &[u8]) -> Result<[pg_sys::ScanKeyData; 2], Error> {
    let purpose = text_key(keys::PURPOSE, purpose.name().as_bytes())?;
    Ok([text_key(keys::TENANT, tenant)?, purpose])
}

fn int8_key(column: i16, value: i64) -> pg_sys::ScanKeyData {
    scan_key(column, pg_sys::F_INT8EQ, Datum::from(value))
}

fn text_key(column: i16, value: &[u8]) -> Result<pg_sys::ScanKeyData, Error> {
    Ok(scan_key(column, pg_sys::F_TEXTEQ, Varlena::of(value)?.into_datum()))
}

/// `ScanKeyInit` compares under the collation "C", which is why the columns have it.
fn scan_key(column: i16, equality: u32, value: Datum) -> pg_sys::ScanKeyData {
    let mut key = MaybeUninit::<pg_sys::ScanKeyData>::zeroed();
    // SAFETY: initialises the structure it is given; all-zero bytes are valid for it before that.
    unsafe {
        pg_sys::ScanKeyInit(
            key.as_mut_ptr(),
            column,
            pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber,
            Oid::from(equality),
            value,
        );
        key.assume_init()
    }
}
