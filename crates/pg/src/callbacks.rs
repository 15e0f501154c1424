//! What Postgres tells: ends of transactions and subtransactions, invalidations.
//!
//! Nothing here can fail, or reads a catalog: an error in a transaction callback restarts the cluster, and
//! a relcache callback may only set a flag. Before a commit errors are still allowed.

use std::cell::Cell;
use std::ffi::c_void;

use pgrx::pg_sys::{self, SubXactEvent, XactEvent};

use super::{call, database_statements, denials, executor, locks, session};
use crate::{audit, keyring, usage};

thread_local! {
    static TRANSACTION_SERIAL: Cell<u64> = const { Cell::new(1) };
    static GENERATION: Cell<u64> = const { Cell::new(1) };
    static KEYS_RELATION: Cell<pg_sys::Oid> = const { Cell::new(pg_sys::InvalidOid) };
    static GUARDS_OPEN: Cell<u32> = const { Cell::new(0) };
}

/// Registers the callbacks.
pub fn init() {
    // SAFETY: the callbacks live as long as the library, which is never unloaded.
    unsafe {
        pg_sys::RegisterXactCallback(Some(at_transaction_event), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(at_subtransaction_event), std::ptr::null_mut());
        pg_sys::CacheRegisterRelcacheCallback(Some(at_invalidation), pg_sys::Datum::null());
    }
}

/// A number that no earlier transaction of this process had.
#[inline]
pub fn transaction_serial() -> u64 {
    TRANSACTION_SERIAL.get()
}

/// Counts the invalidations of `encryption_keys`: what was read under an older one must be read again.
#[inline]
pub fn generation() -> u64 {
    GENERATION.get()
}

/// Tells which relation to listen for.
pub fn watch_relation(relation: pg_sys::Oid) {
    if KEYS_RELATION.replace(relation) != relation {
        GENERATION.set(GENERATION.get() + 1);
    }
}

/// Whether the extension itself is writing to its guarded tables.
pub fn guards_are_open() -> bool {
    GUARDS_OPEN.get() > 0
}

/// Lets writes through the guards of the extension's tables while it lives. Dropped by unwinding
/// too, so an error closes them again.
pub struct GuardsOpen(());

impl GuardsOpen {
    /// Opens them.
    pub fn new() -> Self {
        GUARDS_OPEN.set(GUARDS_OPEN.get() + 1);
        Self(())
    }
}

impl Drop for GuardsOpen {
    fn drop(&mut self) {
        GUARDS_OPEN.set(GUARDS_OPEN.get().saturating_sub(1));
    }
}

unsafe extern "C-unwind" fn at_transaction_event(event: XactEvent::Type, _: *mut c_void) {
    match event {
        XactEvent::XACT_EVENT_PRE_COMMIT
        | XactEvent::XACT_EVENT_PARALLEL_PRE_COMMIT
        | XactEvent::XACT_EVENT_PRE_PREPARE => return call::raising(usage::statement_ends),
        _ => without_panic(usage::transaction_ends),
    }
    match event {
        XactEvent::XACT_EVENT_COMMIT | XactEvent::XACT_EVENT_PARALLEL_COMMIT => {
            keyring::transaction_committed();
            audit::transaction_committed();
        }
        XactEvent::XACT_EVENT_ABORT
        | XactEvent::XACT_EVENT_PARALLEL_ABORT
        | XactEvent::XACT_EVENT_PREPARE => {
            keyring::transaction_gone();
            audit::seal::transaction_gone();
            if event == XactEvent::XACT_EVENT_ABORT {
                locks::forget_in_abort();
            }
        }
        _ => return,
    }
    audit::transaction_ended();
    database_statements::transaction_ended();
    denials::transaction_ended();
    TRANSACTION_SERIAL.set(TRANSACTION_SERIAL.get() + 1);
    GUARDS_OPEN.set(0);
    session::transaction_ended();
}

unsafe extern "C-unwind" fn at_subtransaction_event(
    event: SubXactEvent::Type,
    subtransaction: pg_sys::SubTransactionId,
    parent: pg_sys::SubTransactionId,
    _: *mut c_void,
) {
    match event {
        SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => {
            keyring::subtransaction_committed(subtransaction, parent);
        }
        SubXactEvent::SUBXACT_EVENT_ABORT_SUB => {
            // A statement that failed in a savepoint, not in a block with EXCEPTION inside of it.
            if executor::is_between_statements() {
                without_panic(usage::transaction_ends);
            }
            keyring::subtransaction_gone(subtransaction);
            database_statements::transaction_ended();
        }
        _ => {}
    }
}

/// Nothing is expected to panic; what does is no reason to restart the cluster.
fn without_panic(work: fn()) {
    let _ = std::panic::catch_unwind(work);
}

unsafe extern "C-unwind" fn at_invalidation(_: pg_sys::Datum, relation: pg_sys::Oid) {
    if relation == pg_sys::InvalidOid || relation == KEYS_RELATION.get() {
        GENERATION.set(GENERATION.get() + 1);
    }
}
