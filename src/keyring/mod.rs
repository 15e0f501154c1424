//! Data keys: found in the cache, else by one index look-up. Made, too, but recorded by those who decide so.
//!
//! Every look-up first processes the invalidations of sessions that have committed meanwhile, also on
//! a cache hit: without that, a session inside a transaction would go on with a stale key.

mod audit_keys;
mod cache;
pub mod guard;
mod make;
mod message_keys;
mod salts;
mod secret_keys;
mod tally;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::Instant;

use fieldcrypt_envelope::{DataKey, KeyId, KeyMetadata, KeyState};
use fieldcrypt_locked_memory::{DEEP, with_scrubbed_stack};
use pgrx::pg_sys::SubTransactionId;

pub use audit_keys::{adopt_audit_key, cached_audit_key, with_audit_key};
pub use cache::{Cache, Slot};
pub use make::{make, not_loaded, written};
pub use tally::Tally;

use crate::error::Error;
use crate::master_key;
use crate::pg::callbacks::{self, Listener};
use crate::pg::key_table::{self, KeyRow, Purpose};
use crate::pg::{encoding, invalidations, nodes, transaction};
use crate::settings;
use cache::{Facts, TakeUse};
use secret_keys::SecretKeys;
use tally::nanoseconds_since;

/// The tenant where neither the call nor the session names one.
pub const DEFAULT_TENANT: &[u8] = b"default";
/// Column `tenant` of the keys that authenticate the audit log. Their purpose tells them from those of a
/// tenant of the same name.
pub const AUDIT_TENANT: &[u8] = fieldcrypt_envelope::tenant_name::AUDIT_LOG.as_bytes();
/// Column `tenant` of the keys of loose values, which belong to the database.
pub const LOOSE_TENANT: &[u8] = fieldcrypt_envelope::tenant_name::LOOSE_VALUES.as_bytes();
/// The suite that fields are encrypted with.
pub const ALGORITHM: &[u8] = b"XAES-256-GCM";

/// Look-ups before one is accepted although keys change all the time (a table of keys under VACUUM
/// after VACUUM must not hang a query).
const PATIENCE: usize = 16;

/// Who is told of the use of keys.
pub struct UseListener {
    /// A key is used that no other use since the last taking was counted for.
    pub first_use: fn(),
    /// So many used keys are no longer cached that their use should be taken.
    pub is_much: fn() -> Result<(), Error>,
}

static USE_LISTENER: OnceLock<UseListener> = OnceLock::new();

thread_local! {
    static CACHE: RefCell<Cache> = RefCell::new(Cache::new());
    static FORGET: Cell<bool> = const { Cell::new(false) };
}

/// Registers who is told of uses.
pub fn on_use(listener: UseListener) {
    USE_LISTENER.get_or_init(|| listener);
}

/// Is told of the ends of transactions.
pub fn init() {
    callbacks::listen(Listener {
        committed: transaction_committed,
        gone: || subtransaction_gone(0),
        sub_committed: subtransaction_committed,
        sub_gone: subtransaction_gone,
        ..Listener::DEAF
    });
}

fn first_use() {
    if let Some(listener) = USE_LISTENER.get() {
        (listener.first_use)();
    }
}

/// Uses the tenant's active key. `first_key` makes it if the tenant never had one.
#[inline]
pub fn with_active_key<R>(
    tenant: &[u8],
    first_key: impl Fn(&[u8]) -> Result<KeyRow, Error>,
    use_it: impl FnOnce(&mut Cache, Slot) -> Result<R, Error>,
) -> Result<R, Error> {
    with_slot(
        |cache, generation| cache.active(tenant, generation),
        |generation| {
            let row = match key_table::active_key(Purpose::Field, tenant)? {
                Some(row) => row,
                None => first_key(tenant)?,
            };
            adopt(row, generation)
        },
        use_it,
    )
}

/// Uses the active key of loose values. It is never made here: input functions run where nothing may be written.
#[inline]
pub fn with_loose_key<R>(
    use_it: impl FnOnce(&mut Cache, Slot) -> Result<R, Error>,
) -> Result<R, Error> {
    with_slot(
        |cache, generation| cache.active_loose(generation),
        |generation| {
            let Some(row) = key_table::active_key(Purpose::Loose, LOOSE_TENANT)? else {
                // What makes the first one makes none in the place of one that was suspended.
                return Err(match key_table::newest_version(Purpose::Loose, LOOSE_TENANT)? {
                    Some(_) => Error::NoActiveKey { tenant: encoding::lossy(LOOSE_TENANT) },
                    None => Error::NoLooseKey,
                });
            };
            adopt(row, generation)
        },
        use_it,
    )
}

/// Uses a key that may decrypt.
pub fn with_key<R>(
    key_id: KeyId,
    use_it: impl FnOnce(&mut Cache, Slot) -> Result<R, Error>,
) -> Result<R, Error> {
    with_slot(
        |cache, generation| cache.key(key_id, generation),
        |generation| {
            let row = key_table::key_by_id(key_id)?.ok_or(Error::UnknownKey(key_id));
            if row.is_err() {
                CACHE.with_borrow_mut(|cache| cache.forget(key_id));
            }
            adopt(row?, generation)
        },
        use_it,
    )
}

/// Finds a key in the cache as of now, else loads it, and uses it. A loaded key counts as of the
/// generation before its snapshot: if keys changed since, it is loaded again.
#[inline]
fn with_slot<R>(
    find: impl Fn(&mut Cache, u64) -> Option<Slot>,
    load: impl Fn(u64) -> Result<(), Error>,
    use_it: impl FnOnce(&mut Cache, Slot) -> Result<R, Error>,
) -> Result<R, Error> {
    invalidations::accept_invalidations();
    master_key::notice_reload();
    let mut use_it = Some(use_it);
    let mut as_of = invalidations::generation();
    let mut load_time = None;
    for attempt in 0..=PATIENCE + 1 {
        let done = CACHE.with_borrow_mut(|cache| {
            if cache.wake(FORGET.replace(false), master_key::epoch()) {
                audit_keys::notice_epoch();
            }
            let slot = find(cache, as_of)?;
            if let Some(load_time) = load_time {
                let tally = cache.tally(slot);
                tally.misses += 1;
                tally.load_time += load_time;
            }
            use_it.take().map(|use_it| use_it(cache, slot))
        });
        if let Some(result) = done {
            return result;
        }
        nodes::warn_of_early_setting();
        let before = invalidations::generation();
        let began = Instant::now();
        load(before)?;
        load_time = Some(load_time.unwrap_or(0) + nanoseconds_since(began));
        as_of = if attempt < PATIENCE { invalidations::generation() } else { before };
    }
    Err(Error::Internal("a key that was just loaded can't be found".into()))
}

/// Takes a row of the table into the cache, unless its state forbids any use. No value was ever encrypted
/// under a key of another purpose.
fn adopt(row: KeyRow, generation: u64) -> Result<(), Error> {
    let purpose = row.known_purpose().unwrap_or(Purpose::Field);
    let refused = match row.state {
        _ if matches!(purpose, Purpose::Audit | Purpose::Search) => {
            Some(Error::NotAuthentic { key: row.key_id, has_context: None })
        }
        KeyState::Active | KeyState::Deactivated | KeyState::Compromised => None,
        KeyState::Suspended => Some(Error::KeySuspended(row.key_id)),
        KeyState::Destroyed => Some(Error::KeyDestroyed(row.key_id)),
    };
    let facts = Facts {
        key_id: row.key_id,
        tenant: row.tenant.as_slice().into(),
        purpose,
        state: row.state,
        check: row.check,
        generation,
        uncommitted: row.uncommitted.then(transaction::current_subtransaction),
    };
    if let Some(error) = refused {
        CACHE.with_borrow_mut(|cache| cache.forget(row.key_id));
        return Err(error);
    }
    if CACHE.with_borrow(Cache::is_full_of_use)
        && let Some(listener) = USE_LISTENER.get()
    {
        (listener.is_much)()?;
    }
    let facts = match CACHE.with_borrow_mut(|cache| cache.revalidate(facts)) {
        None => return Ok(()),
        Some(facts) => facts,
    };
    with_scrubbed_stack::<DEEP, _>(|| {
        let keys = SecretKeys::derive(&unwrap_key(&row)?, row.key_id, purpose)
            .map_err(|_| Error::WrappedKeyNotAuthentic(row.key_id))?;
        CACHE.with_borrow_mut(|cache| cache.insert(facts, keys, settings::key_cache_size()))
    })
}

/// The tenant of a key, whatever its state; `None` if there is no such key.
pub fn tenant_of_key(key_id: KeyId) -> Option<Vec<u8>> {
    key_table::key_by_id(key_id).ok().flatten().map(|row| row.tenant)
}

/// The tenant of a key, if it is cached.
pub fn cached_tenant(key_id: KeyId) -> Option<Rc<[u8]>> {
    CACHE.with_borrow(|cache| cache.tenant(key_id))
}

/// Takes what each key was used for since this was last called. Called where nothing may fail.
pub fn take_use(take: &mut TakeUse<'_>) {
    // Without FORGET: what can't be taken now stays.
    let _ = CACHE.try_with(|cache| cache.try_borrow_mut().map(|mut cache| cache.take_use(take)));
}

/// Keys that this transaction made are committed now. Called where nothing may fail.
fn transaction_committed() {
    in_callback(Cache::transaction_committed);
    audit_keys::transaction_committed();
}

/// Keys of a subtransaction are its parent's now.
fn subtransaction_committed(child: SubTransactionId, parent: SubTransactionId) {
    in_callback(|cache| cache.subtransaction_committed(child, parent));
    audit_keys::subtransaction_committed(child, parent);
}

/// Keys of a subtransaction, and of those inside it, are gone; with 0, all that are not committed: they may
/// belong to a prepared transaction.
fn subtransaction_gone(child: SubTransactionId) {
    in_callback(|cache| cache.subtransaction_gone(child));
    audit_keys::subtransaction_gone(child);
}

/// A callback may come while the cache is borrowed only if the backend is going down in the middle of
/// a look-up; then forgetting is left to the next one, if there ever is.
fn in_callback(work: impl FnOnce(&mut Cache)) {
    let reached = CACHE.try_with(|cache| cache.try_borrow_mut().map(|mut cache| work(&mut cache)));
    if !matches!(reached, Ok(Ok(()))) {
        FORGET.set(true);
    }
}

/// Opens the wrapped key of a row.
pub fn unwrap_key(row: &KeyRow) -> Result<DataKey, Error> {
    with_wrapped(row, |wrapped, metadata| {
        master_key::unwrap_key(row.master_key, wrapped, metadata, &row.check)
    })
}

/// Calls `work` with the wrapped key of a row and what its wrapping authenticates, if they are of a kind
/// that this version knows.
pub fn with_wrapped<R>(
    row: &KeyRow,
    work: impl FnOnce(&[u8], &KeyMetadata<'_>) -> Result<R, Error>,
) -> Result<R, Error> {
    let purpose = row.purpose()?;
    let wrapped = row.wrapped_key.as_deref().unwrap_or_default();
    with_metadata(purpose, row.key_id, &row.tenant, row.version, |metadata| work(wrapped, metadata))
}

/// Calls `work` with what the wrapping of a key authenticates, texts in UTF-8.
pub fn with_metadata<R>(
    purpose: Purpose,
    key_id: KeyId,
    tenant: &[u8],
    version: i32,
    work: impl FnOnce(&KeyMetadata<'_>) -> Result<R, Error>,
) -> Result<R, Error> {
    let tenant = encoding::to_utf8(tenant)?;
    let tenant = str::from_utf8(&tenant).map_err(|_| Error::NotUtf8)?;
    let version = u32::try_from(version)
        .map_err(|_| Error::KeyTable("encryption_keys has a row with a negative version".into()))?;
    let (purpose, algorithm) = (purpose.name(), purpose.algorithm());
    work(&KeyMetadata { tenant, key_id, version, purpose, algorithm })
}

/// Bytes in hex.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
