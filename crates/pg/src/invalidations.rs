//! Other sessions' changes: Postgres's invalidation messages, above all those of `encryption_keys`.
//!
//! A callback may only set a flag: it reads no catalog.

use std::cell::Cell;

use pgrx::pg_sys;

thread_local! {
    static GENERATION: Cell<u64> = const { Cell::new(1) };
    static ANY: Cell<u64> = const { Cell::new(0) };
    static KEYS_RELATION: Cell<pg_sys::Oid> = const { Cell::new(pg_sys::InvalidOid) };
}

/// Registers the callback.
pub fn init() {
    // SAFETY: the callback lives as long as the library, which is never unloaded.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(at_invalidation), pg_sys::Datum::null());
        pg_sys::CacheRegisterSyscacheCallback(
            pg_sys::SysCacheIdentifier::NAMESPACEOID as i32,
            Some(at_schema_invalidation),
            pg_sys::Datum::null(),
        );
    }
}

/// Processes the invalidation messages of other sessions that have committed by now. Without it a
/// session in a transaction would go on with a key that was destroyed meanwhile.
#[inline]
pub fn accept_invalidations() {
    // SAFETY: allowed wherever a transaction is in progress, as it is in any SQL function.
    unsafe { pg_sys::AcceptInvalidationMessages() }
}

/// Tells every session, this one too, that a relation's contents have changed.
pub fn invalidate(relation: pg_sys::Oid) {
    // SAFETY: queues a message, sent at commit.
    unsafe { pg_sys::CacheInvalidateRelcacheByRelid(relation) }
}

/// Counts the invalidations of `encryption_keys`: what was read under an older one must be read again.
#[inline]
pub fn generation() -> u64 {
    GENERATION.get()
}

/// Counts the invalidations of all relations, and of schemas: what a name, a column or an index is may have
/// changed with each.
#[inline]
pub fn any_generation() -> u64 {
    ANY.get()
}

/// Tells which relation to listen for.
pub fn watch_relation(relation: pg_sys::Oid) {
    if KEYS_RELATION.replace(relation) != relation {
        GENERATION.set(GENERATION.get() + 1);
    }
}

unsafe extern "C-unwind" fn at_schema_invalidation(_: pg_sys::Datum, _: i32, _: u32) {
    ANY.set(ANY.get() + 1);
}

unsafe extern "C-unwind" fn at_invalidation(_: pg_sys::Datum, relation: pg_sys::Oid) {
    ANY.set(ANY.get() + 1);
    if relation == pg_sys::InvalidOid || relation == KEYS_RELATION.get() {
        GENERATION.set(GENERATION.get() + 1);
    }
}
