//! Rows of Postgres's catalogs, out of the caches that every process has of them.

use std::ffi::c_int;

use pgrx::pg_sys::{self, Datum, SysCacheIdentifier};

/// What `read` says of the row under these keys; `None` if there is none.
///
/// # Safety
///
/// The keys are of the cache's types. What `read` gives does not point into the row.
pub(super) unsafe fn with_row<R>(
    cache: SysCacheIdentifier::Type,
    keys: &[Datum],
    read: impl FnOnce(pg_sys::HeapTuple) -> R,
) -> Option<R> {
    let key = |index: usize| keys.get(index).copied().unwrap_or(Datum::null());
    // SAFETY: the sequence of every look-up in a cache: the row is valid until it is released, after an
    // error by the transaction's resource owner.
    unsafe {
        let row = pg_sys::SearchSysCache(cache as c_int, key(0), key(1), key(2), key(3));
        if row.is_null() {
            return None;
        }
        let result = read(row);
        pg_sys::ReleaseSysCache(row);
        Some(result)
    }
}

/// The same with the fixed part of the row.
///
/// # Safety
///
/// As for [`with_row`]; `Form` is that of the cache's catalog.
pub(super) unsafe fn with_form<Form, R>(
    cache: SysCacheIdentifier::Type,
    keys: &[Datum],
    read: impl FnOnce(*const Form) -> R,
) -> Option<R> {
    // SAFETY: by the contract.
    unsafe { with_row(cache, keys, |row| read(pg_sys::GETSTRUCT(row).cast::<Form>())) }
}
