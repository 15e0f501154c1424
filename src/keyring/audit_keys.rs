//! The keys that authenticate the audit log: one active, and those that old rows were written under.
//!
//! They follow the rules of the other keys: a look-up processes invalidations first, a cached key is good
//! as of a generation, and what a transaction that may yet roll back wrote goes with it.

use std::cell::{Cell, RefCell};

use fieldcrypt_envelope::{AuditKey, KeyId, KeyState};
use fieldcrypt_locked_memory::{DEEP, LockedSlab, with_scrubbed_stack};
use pgrx::pg_sys::SubTransactionId;

use super::unwrap_key;
use crate::error::Error;
use crate::master_key;
use crate::pg::key_table::{self, KeyRow, Purpose};
use crate::pg::{invalidations, transaction};

/// Keys that are kept unwrapped: a log of years has seen few.
const LIMIT: usize = 32;

thread_local! {
    static KEYS: RefCell<Keys> = const { RefCell::new(Keys::new()) };
    static FORGET: Cell<bool> = const { Cell::new(false) };
    static EPOCH: Cell<u64> = const { Cell::new(0) };
}

/// The active key, if it is cached as of now, and the generation that is now.
pub fn cached_audit_key() -> (Option<KeyId>, u64) {
    invalidations::accept_invalidations();
    master_key::notice_reload();
    let generation = invalidations::generation();
    let cached = with_keys(|keys| {
        keys.find(|known| known.state == KeyState::Active && known.generation == generation)
            .map(|index| keys.entries[index].key_id)
    });
    (cached, generation)
}

/// Calls `work` with a key under which rows were written, in any state but destroyed.
pub fn with_audit_key<R>(key_id: KeyId, work: impl FnOnce(&AuditKey) -> R) -> Result<R, Error> {
    invalidations::accept_invalidations();
    let generation = invalidations::generation();
    let find =
        |keys: &Keys| keys.find(|known| known.key_id == key_id && known.generation == generation);
    let index = match with_keys(|keys| find(keys)) {
        Some(index) => index,
        None => {
            let row = key_table::key_by_id(key_id)?.ok_or(Error::UnknownKey(key_id))?;
            adopt_audit_key(&row, generation)?;
            with_keys(|keys| find(keys)).ok_or_else(|| {
                Error::Internal("a key that was just loaded can't be found".into())
            })?
        }
    };
    with_keys(|keys| {
        let slot = keys.entries[index].slot;
        keys.secrets
            .get_mut(slot)
            .map(|key| work(key))
            .ok_or(Error::OutOfMemory { what: "encryption keys" })
    })
}

/// Empties the cache if the master keys have changed, though no row of the log may be written for long.
pub fn notice_epoch() {
    with_keys(|_| ());
}

/// Keys that this transaction made are committed now. Called where nothing may fail.
pub fn transaction_committed() {
    in_callback(|keys| keys.entries.iter_mut().for_each(|known| known.uncommitted = None));
}

/// Keys of a subtransaction are its parent's now.
pub fn subtransaction_committed(child: SubTransactionId, parent: SubTransactionId) {
    in_callback(|keys| {
        for of in keys.entries.iter_mut().filter_map(|known| known.uncommitted.as_mut()) {
            *of = if *of >= child { parent } else { *of };
        }
    });
}

/// Keys of a subtransaction, and of those inside it, are gone; with 0, all that are not committed.
pub fn subtransaction_gone(child: SubTransactionId) {
    in_callback(|keys| {
        while let Some(index) = keys.find(|known| known.uncommitted.is_some_and(|of| of >= child)) {
            keys.remove(index);
        }
    });
}

/// Takes a row of the table into the cache.
pub fn adopt_audit_key(row: &KeyRow, generation: u64) -> Result<(), Error> {
    if row.purpose()? != Purpose::Audit {
        return Err(Error::KeyTable(format!(
            "encryption key {} is not one that authenticates the audit log",
            row.key_id
        )));
    }
    if row.state == KeyState::Destroyed {
        return Err(Error::KeyDestroyed(row.key_id));
    }
    let uncommitted = row.uncommitted.then(transaction::current_subtransaction);
    let is_known = with_keys(|keys| {
        let index = keys.find(|known| known.key_id == row.key_id)?;
        if keys.entries[index].check != row.check {
            keys.remove(index);
            return None;
        }
        let known = &mut keys.entries[index];
        (known.state, known.generation, known.uncommitted) = (row.state, generation, uncommitted);
        Some(())
    });
    if is_known.is_some() {
        return Ok(());
    }
    with_scrubbed_stack::<DEEP, _>(|| {
        let key = unwrap_key(row)?.audit_key(row.key_id);
        with_keys(|keys| {
            if keys.entries.len() >= LIMIT {
                keys.remove(0);
            }
            let slot = keys
                .secrets
                .insert(key)
                .map_err(|_| Error::OutOfMemory { what: "encryption keys" })?;
            keys.entries.push(Known {
                key_id: row.key_id,
                state: row.state,
                check: row.check,
                generation,
                uncommitted,
                slot,
            });
            Ok(())
        })
    })
}

struct Keys {
    secrets: LockedSlab<AuditKey>,
    entries: Vec<Known>,
}

/// What is known of a cached key, all of it public.
struct Known {
    key_id: KeyId,
    state: KeyState,
    check: [u8; 16],
    generation: u64,
    uncommitted: Option<SubTransactionId>,
    slot: u32,
}

impl Keys {
    const fn new() -> Self {
        Self { secrets: LockedSlab::new(), entries: Vec::new() }
    }

    fn find(&self, is_it: impl Fn(&Known) -> bool) -> Option<usize> {
        self.entries.iter().position(is_it)
    }

    fn remove(&mut self, index: usize) {
        let known = self.entries.remove(index);
        self.secrets.remove(known.slot);
    }
}

/// The cache, emptied first in a forked child, whose copy of the secrets reads as zero bytes, after a
/// change of the master keys, and after a callback that could not reach it.
fn with_keys<R>(work: impl FnOnce(&mut Keys) -> R) -> R {
    KEYS.with_borrow_mut(|keys| {
        let is_other_epoch = EPOCH.replace(master_key::epoch()) != master_key::epoch();
        if FORGET.replace(false) || is_other_epoch || keys.secrets.was_wiped() {
            *keys = Keys::new();
        }
        work(keys)
    })
}

fn in_callback(work: impl FnOnce(&mut Keys)) {
    let reached = KEYS.try_with(|keys| keys.try_borrow_mut().map(|mut keys| work(&mut keys)));
    if !matches!(reached, Ok(Ok(()))) {
        FORGET.set(true);
    }
}
