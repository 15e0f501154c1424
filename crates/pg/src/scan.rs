//! Scans as Postgres reads its own catalogs: by index, under a fresh catalog snapshot.

use std::ffi::c_int;
use std::mem::MaybeUninit;

use fieldcrypt_error::Error;
use pgrx::pg_sys::{self, Datum, Oid};

use super::values::Varlena;
use super::{tuple, version};

pub(super) fn first<R>(
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
pub(super) fn scan(
    relation: Oid,
    index: Oid,
    scan_keys: &mut [pg_sys::ScanKeyData],
    visit: impl FnMut(&tuple::Row<'_>) -> Result<bool, Error>,
) -> Result<(), Error> {
    scan_with(std::ptr::null_mut(), relation, index, scan_keys, visit)
}

pub(super) fn scan_with(
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
        if let Some(key) = scan_keys.iter().find(|key| !fits(key, (*heap).rd_att)) {
            let column = key.sk_attno;
            pg_sys::table_close(heap, lock);
            return Err(Error::KeyTable(format!(
                "column {column} of a table of pg_fieldcrypt no longer has the type that it was made with"
            )));
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

/// Whether a column still has the type whose values the key compares: the function reads them as that, whatever a
/// superuser has made of the table.
///
/// # Safety
///
/// A descriptor of the relation that the key is for.
unsafe fn fits(key: &pg_sys::ScanKeyData, descriptor: pg_sys::TupleDesc) -> bool {
    let compared = match key.sk_func.fn_oid.to_u32() {
        pg_sys::F_INT8EQ => pg_sys::INT8OID,
        pg_sys::F_OIDEQ => pg_sys::OIDOID,
        pg_sys::F_TEXTEQ => pg_sys::TEXTOID,
        _ => return false,
    };
    // SAFETY: by the contract; the place is compared first.
    unsafe {
        let index = key.sk_attno as usize - 1;
        index < (*descriptor).natts as usize
            && (*version::attribute(descriptor, index)).atttypid == compared
    }
}

pub(super) fn int8_key(column: i16, value: i64) -> pg_sys::ScanKeyData {
    scan_key(column, pg_sys::F_INT8EQ, Datum::from(value))
}

pub(super) fn oid_key(column: i16, value: Oid) -> pg_sys::ScanKeyData {
    scan_key(column, pg_sys::F_OIDEQ, Datum::from(value))
}

pub(super) fn text_key(column: i16, value: &[u8]) -> Result<pg_sys::ScanKeyData, Error> {
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

/// Whether a relation has any row that a fresh snapshot sees.
pub fn has_rows(relation: Oid) -> Result<bool, Error> {
    let mut found = false;
    scan(relation, pg_sys::InvalidOid, &mut [], |_| {
        found = true;
        Ok(false)
    })?;
    Ok(found)
}
