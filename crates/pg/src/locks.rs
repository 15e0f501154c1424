//! Session locks by which others see that a run is still under way.
//!
//! They last over commits. They end with the session however it ends, and when a transaction aborts: an
//! error ends the CALL that a run is.

use std::cell::Cell;

use pgrx::pg_sys;

use super::callbacks::{self, Listener};
use super::relations;
use fieldcrypt_error::Error;

thread_local! {
    static HELD: Cell<Option<pg_sys::LOCKTAG>> = const { Cell::new(None) };
    static IS_REGISTERED: Cell<bool> = const { Cell::new(false) };
}

/// Takes the lock of a run, which pg_locks shows as an object lock: classid is the relation, objid the
/// number. Ends one that is held.
pub fn hold(number: u32) -> Result<(), Error> {
    release();
    let tag = pg_sys::LOCKTAG {
        // SAFETY: a variable of the backend.
        locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
        locktag_field2: relations::runs_relation()?.to_u32(),
        locktag_field3: number,
        locktag_field4: 0,
        locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
    };
    if !IS_REGISTERED.replace(true) {
        // In an abort Postgres releases session locks of this kind with the others.
        callbacks::listen(Listener { aborted: || HELD.set(None), ..Listener::DEAF });
        // SAFETY: the callback lives as long as the library, which is never unloaded.
        unsafe { pg_sys::on_shmem_exit(Some(at_exit), pg_sys::Datum::null()) };
    }
    // SAFETY: takes a session lock of a number that nobody else has.
    unsafe { pg_sys::LockAcquire(&tag, pg_sys::ExclusiveLock as i32, true, false) };
    HELD.set(Some(tag));
    Ok(())
}

/// The number of the run whose lock this session holds.
pub fn held() -> Option<u32> {
    HELD.get().map(|tag| tag.locktag_field3)
}

/// Ends it, if one is held.
pub fn release() {
    if let Some(tag) = HELD.take() {
        // SAFETY: releases what `hold` took.
        unsafe { pg_sys::LockRelease(&tag, pg_sys::ExclusiveLock as i32, true) };
    }
}

/// A session that ends outside of a transaction aborts nothing, and Postgres itself releases only
/// advisory locks then: this one would stay, and be the next process's in this place. After an abort
/// there is nothing left to do.
unsafe extern "C-unwind" fn at_exit(_: i32, _: pg_sys::Datum) {
    unguarded::release(HELD.take());
}

mod unguarded {
    use pgrx::pg_sys;
    unsafe extern "C-unwind" {
        fn LockRelease(tag: *const pg_sys::LOCKTAG, mode: i32, is_session_lock: bool) -> bool;
    }

    pub fn release(held: Option<pg_sys::LOCKTAG>) {
        if let Some(tag) = held {
            // SAFETY: the lock is held by this session, and the lock manager is ready until the process
            // gives up its place, which it does after this. Without pgrx's guard, which has no place in
            // an exit; releasing a lock that is held raises nothing.
            unsafe { LockRelease(&tag, pg_sys::ExclusiveLock as i32, true) };
        }
    }
}
