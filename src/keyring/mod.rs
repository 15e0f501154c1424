//! Data keys: found in the cache, else by one index look-up, else made.
//!
//! Every look-up first processes the invalidations of sessions that have committed meanwhile, also on
//! a cache hit: without that, a session inside a transaction would go on with a stale key.

mod audit_keys;
mod cache;
mod create;
pub mod export;
pub mod guard;
mod policies;
mod rewrap;
pub mod states;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use fieldcrypt_envelope::ciphertext::{self, PLAINTEXT_OFFSET};
use fieldcrypt_envelope::{Ciphertext, Context, KeyId, KeyMetadata, KeyState};
use fieldcrypt_locked_memory::{DEEP, with_scrubbed_stack};
use pgrx::pg_sys::SubTransactionId;

pub use audit_keys::{active_audit_key, with_audit_key};
pub use create::{Rotation, ensure_active, rotate, rotate_if_active};

use crate::error::Error;
use crate::master_key;
use crate::pg::catalog::{self, KeyRow, Purpose};
use crate::pg::values::Varlena;
use crate::pg::{callbacks, encoding, session};
use crate::settings;
use crate::usage::{self, Record, Tally};
use cache::{Facts, Ring, Slot};

/// The tenant where neither the call nor the session names one.
pub const DEFAULT_TENANT: &[u8] = b"default";
/// Column `tenant` of the keys that authenticate the audit log. Their purpose tells them from those of a
/// tenant of the same name.
pub const AUDIT_TENANT: &[u8] = b"audit log";
/// The suite that fields are encrypted with.
pub const ALGORITHM: &[u8] = b"XAES-256-GCM";

/// Bytes that a context may have: it names a place, it is not a document.
const MAX_CONTEXT_BYTES: usize = 1 << 20;

/// Look-ups before one is accepted although keys change all the time (a table of keys under VACUUM
/// after VACUUM must not hang a query).
const PATIENCE: usize = 16;

thread_local! {
    static RING: RefCell<Ring> = RefCell::new(Ring::new());
    static FORGET: Cell<bool> = const { Cell::new(false) };
}

/// The tenant of a call: what it names, else the session's, else `default`.
pub fn tenant_of_call(named: &[u8]) -> Result<&[u8], Error> {
    let tenant = match named {
        b"" => settings::tenant().unwrap_or(DEFAULT_TENANT),
        named => named,
    };
    if tenant.len() > settings::MAX_TENANT_BYTES {
        return Err(Error::TenantName);
    }
    Ok(tenant)
}

/// Seals `buffer`, which holds the plaintext at [`PLAINTEXT_OFFSET`], with the tenant's active key,
/// which is made if the tenant never had one.
#[inline]
pub fn seal(tenant: &[u8], context: &Context<'_>, buffer: &mut [u8]) -> Result<(), Error> {
    seal_and_count(tenant, context, buffer, |tally, bytes, nanoseconds| {
        tally.encrypted += 1;
        tally.encrypted_bytes += bytes;
        tally.encrypt_time += nanoseconds;
    })
}

#[inline]
fn seal_and_count(
    tenant: &[u8],
    context: &Context<'_>,
    buffer: &mut [u8],
    count: impl Fn(&mut Tally, u64, u64),
) -> Result<(), Error> {
    with_slot(
        |ring, generation| ring.active(tenant, generation),
        |generation| {
            let row = match catalog::active_key(Purpose::Field, tenant)? {
                Some(row) => row,
                None => create::first_key(tenant)?,
            };
            adopt(row, generation)
        },
        |ring, slot| {
            let stopwatch = ring.stopwatch();
            seal_with(ring, slot, context, buffer)?;
            let bytes = buffer.len().saturating_sub(ciphertext::OVERHEAD) as u64;
            count(ring.tally(slot), bytes, stopwatch.nanoseconds());
            Ok(())
        },
    )
}

/// Opens a value in place: `buffer` holds a copy of its body, and the plaintext afterwards.
#[inline]
pub fn open(value: &Ciphertext<'_>, context: &Context<'_>, buffer: &mut [u8]) -> Result<(), Error> {
    let record = usage::before_decryption();
    let alone = with_key(value.key_id(), |ring, slot| {
        let stopwatch = ring.stopwatch();
        open_with(ring, slot, value, context, buffer)?;
        let tally = ring.tally(slot);
        tally.decrypted += 1;
        tally.decrypted_bytes += value.plaintext_length() as u64;
        tally.decrypt_time += stopwatch.nanoseconds();
        tally.recorded += u64::from(record == Record::InStatement);
        Ok((record == Record::Alone).then(|| Rc::clone(&ring.facts(slot).tenant)))
    })?;
    match alone {
        Some(tenant) => usage::record_call(&tenant, value.key_id()),
        None => Ok(()),
    }
}

#[inline]
fn open_with(
    ring: &mut Ring,
    slot: Slot,
    value: &Ciphertext<'_>,
    context: &Context<'_>,
    buffer: &mut [u8],
) -> Result<(), Error> {
    refuse_other_tenant(&ring.facts(slot).tenant)?;
    let key = ring.message_key(slot, value.nonce())?;
    Ok(value.open_in_place(key, context, buffer)?)
}

/// How a key stands that may decrypt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Values are where they belong.
    Active,
    /// Values are to be re-encrypted some day.
    Deactivated,
    /// Values are to be re-encrypted first.
    Compromised,
}

/// How a key stands, and its tenant's name. A key that may not decrypt is an error.
pub fn standing(key_id: KeyId) -> Result<(Standing, Vec<u8>), Error> {
    with_key(key_id, |ring, slot| {
        let facts = ring.facts(slot);
        let standing = match facts.state {
            KeyState::Active => Standing::Active,
            KeyState::Compromised => Standing::Compromised,
            KeyState::Deactivated | KeyState::Suspended | KeyState::Destroyed => {
                Standing::Deactivated
            }
        };
        Ok((standing, facts.tenant.to_vec()))
    })
}

/// The tenant of a key, whatever its state; `None` if there is no such key.
pub fn tenant_of_key(key_id: KeyId) -> Option<Vec<u8>> {
    catalog::key_by_id(key_id).ok().flatten().map(|row| row.tenant)
}

/// The same plaintext under the active key of the value's own tenant. It goes from the old value's key
/// to the new one's without leaving the result's own memory. A value that is on the active key already
/// is checked and given back as it is.
pub fn reencrypt(bytes: &[u8], context: &Context<'_>) -> Result<Varlena, Error> {
    let value = Ciphertext::parse(bytes)?;
    let mut fresh = Varlena::around(bytes.len(), 0, bytes)?;
    let plaintext = PLAINTEXT_OFFSET..PLAINTEXT_OFFSET + value.plaintext_length();
    let buffer = &mut fresh.bytes_mut()[plaintext];
    with_key(value.key_id(), |ring, slot| open_with(ring, slot, &value, context, buffer))?;
    let (standing, tenant) = standing(value.key_id())?;
    if standing == Standing::Active {
        fresh.bytes_mut().copy_from_slice(bytes);
    } else {
        let count = |tally: &mut Tally, _, _| tally.reencrypted += 1;
        seal_and_count(&tenant, context, fresh.bytes_mut(), count)?;
    }
    Ok(fresh)
}

/// Calls `work` with a context: '' is none, a text in the database's encoding is one part.
pub fn with_context<R>(
    text: &[u8],
    work: impl FnOnce(&Context<'_>) -> Result<R, Error>,
) -> Result<R, Error> {
    match text {
        b"" => work(&Context::NONE),
        text if text.len() > MAX_CONTEXT_BYTES => Err(Error::TooLong { what: "a context" }),
        text => {
            let utf8 = encoding::to_utf8(text)?;
            let part = [str::from_utf8(&utf8).map_err(|_| Error::NotUtf8)?];
            let context = Context::new(&part).ok_or(Error::TooLarge { bytes: text.len() })?;
            work(&context)
        }
    }
}

/// Forgets every key: the master key changed.
pub fn forget_everything() {
    RING.with_borrow_mut(Ring::forget_everything);
    audit_keys::forget_everything();
}

/// Takes what each key was used for since this was last called. Called where nothing may fail.
pub fn take_use(take: &mut cache::TakeUse<'_>) {
    // Without FORGET: what can't be taken now stays.
    let _ = RING.try_with(|ring| ring.try_borrow_mut().map(|mut ring| ring.take_use(take)));
}

/// The tenant of a key, if it is cached.
pub fn cached_tenant(key_id: KeyId) -> Option<Rc<[u8]>> {
    RING.with_borrow(|ring| ring.tenant(key_id))
}

/// Keys that this transaction made are committed now. Called where nothing may fail.
pub fn transaction_committed() {
    in_callback(Ring::transaction_committed);
    audit_keys::transaction_committed();
}

/// Keys that this transaction made are gone, or belong to a prepared transaction.
pub fn transaction_gone() {
    in_callback(|ring| ring.subtransaction_gone(0));
    audit_keys::subtransaction_gone(0);
}

/// Keys of a subtransaction are its parent's now.
pub fn subtransaction_committed(child: SubTransactionId, parent: SubTransactionId) {
    in_callback(|ring| ring.subtransaction_committed(child, parent));
    audit_keys::subtransaction_committed(child, parent);
}

/// Keys of a subtransaction are gone.
pub fn subtransaction_gone(child: SubTransactionId) {
    in_callback(|ring| ring.subtransaction_gone(child));
    audit_keys::subtransaction_gone(child);
}

/// A callback may come while the ring is borrowed only if the backend is going down in the middle of
/// a look-up; then forgetting is left to the next one, if there ever is.
fn in_callback(work: impl FnOnce(&mut Ring)) {
    let reached = RING.try_with(|ring| ring.try_borrow_mut().map(|mut ring| work(&mut ring)));
    if !matches!(reached, Ok(Ok(()))) {
        FORGET.set(true);
    }
}

fn with_key<R>(
    key_id: KeyId,
    use_it: impl FnOnce(&mut Ring, Slot) -> Result<R, Error>,
) -> Result<R, Error> {
    with_slot(
        |ring, generation| ring.key(key_id, generation),
        |generation| {
            let row = catalog::key_by_id(key_id)?.ok_or(Error::UnknownKey(key_id));
            if row.is_err() {
                RING.with_borrow_mut(|ring| ring.forget(key_id));
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
    find: impl Fn(&mut Ring, u64) -> Option<Slot>,
    load: impl Fn(u64) -> Result<(), Error>,
    use_it: impl FnOnce(&mut Ring, Slot) -> Result<R, Error>,
) -> Result<R, Error> {
    session::accept_invalidations();
    master_key::notice_reload();
    let mut use_it = Some(use_it);
    let mut as_of = callbacks::generation();
    let mut load_time = None;
    for attempt in 0..=PATIENCE + 1 {
        let done = RING.with_borrow_mut(|ring| {
            ring.wake(FORGET.replace(false));
            let slot = find(ring, as_of)?;
            if let Some(load_time) = load_time {
                let tally = ring.tally(slot);
                tally.misses += 1;
                tally.load_time += load_time;
            }
            use_it.take().map(|use_it| use_it(ring, slot))
        });
        if let Some(result) = done {
            return result;
        }
        let before = callbacks::generation();
        let began = Instant::now();
        load(before)?;
        load_time = Some(load_time.unwrap_or(0) + usage::nanoseconds_since(began));
        as_of = if attempt < PATIENCE { callbacks::generation() } else { before };
    }
    Err(Error::Internal("a key that was just loaded can't be found".into()))
}

fn seal_with(
    ring: &mut Ring,
    slot: Slot,
    context: &Context<'_>,
    buffer: &mut [u8],
) -> Result<(), Error> {
    let length = buffer.len().saturating_sub(ciphertext::OVERHEAD) as u64;
    let key_id = ring.facts(slot).key_id;
    let nonce = ring.next_nonce(slot, session::block_scope(), length)?;
    let key = ring.message_key(slot, &nonce)?;
    ciphertext::seal_in_place(key, key_id, &nonce, context, buffer)
        .map_err(|_| Error::TooLarge { bytes: buffer.len() })
}

fn refuse_other_tenant(tenant: &[u8]) -> Result<(), Error> {
    match settings::tenant() {
        Some(session_tenant) if session_tenant != tenant => Err(Error::OtherTenant),
        _ => Ok(()),
    }
}

/// Takes a row of the table into the cache, unless its state forbids any use. No value was ever encrypted
/// under a key of another purpose.
fn adopt(row: KeyRow, generation: u64) -> Result<(), Error> {
    let refused = match row.state {
        _ if Purpose::parse(&row.purpose) == Some(Purpose::Audit) => Some(Error::NotAuthentic),
        KeyState::Active | KeyState::Deactivated | KeyState::Compromised => None,
        KeyState::Suspended => Some(Error::KeySuspended(row.key_id)),
        KeyState::Destroyed => Some(Error::KeyDestroyed(row.key_id)),
    };
    let facts = Facts {
        key_id: row.key_id,
        tenant: row.tenant.as_slice().into(),
        state: row.state,
        check: row.check,
        generation,
        uncommitted: row.uncommitted.then(session::current_subtransaction),
    };
    if let Some(error) = refused {
        RING.with_borrow_mut(|ring| ring.forget(row.key_id));
        return Err(error);
    }
    if RING.with_borrow(Ring::is_full_of_use) {
        usage::tell_early()?;
    }
    let facts = match RING.with_borrow_mut(|ring| ring.revalidate(facts)) {
        None => return Ok(()),
        Some(facts) => facts,
    };
    with_scrubbed_stack::<DEEP, _>(|| {
        let suite_key = unwrap(&row)?.suite_key(row.key_id);
        RING.with_borrow_mut(|ring| ring.insert(facts, suite_key, settings::key_cache_size()))
    })
}

fn unwrap(row: &KeyRow) -> Result<fieldcrypt_envelope::DataKey, Error> {
    with_wrapped(row, |wrapped, metadata| {
        master_key::unwrap(row.master_key, wrapped, metadata, &row.check)
    })
}

/// Calls `work` with the wrapped key of a row and what its wrapping authenticates, if they are of a kind
/// that this version knows.
fn with_wrapped<R>(
    row: &KeyRow,
    work: impl FnOnce(&[u8], &KeyMetadata<'_>) -> Result<R, Error>,
) -> Result<R, Error> {
    let purpose = row.purpose()?;
    let wrapped = row.wrapped_key.as_deref().unwrap_or_default();
    with_metadata(purpose, row.key_id, &row.tenant, row.version, |metadata| work(wrapped, metadata))
}

/// Calls `work` with what the wrapping of a key authenticates, texts in UTF-8.
fn with_metadata<R>(
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

const _: () = assert!(PLAINTEXT_OFFSET == 26, "docs/format.md says so");
