//! Values of suites 0x02 and 0x03: plaintext that comes in is sealed as a loose value, bound to its row when it is stored,
//! and opened where it belongs.

use std::cell::RefCell;
use std::rc::Rc;

use fieldcrypt_envelope::bound::{OpenError, header_length, overhead, seal_in_place};
use fieldcrypt_envelope::{
    Binding, BoundCiphertext, Expected, Form, Header, Kind, Place, Session, Stamp,
};

use super::just_sealed;
use super::open::refuse_other_tenant;
use crate::error::Error;
use crate::keyring::{self, Cache, Slot, Tally};
use crate::lifecycle;
use crate::pg::values::Varlena;
use crate::pg::{clock, security, session, transaction};
use crate::settings;
use crate::usage;

/// Seals a plaintext that comes in, for this session to store in a row.
pub fn seal_loose(form: Form, plaintext: &[u8]) -> Result<Varlena, Error> {
    let Session { database, process, started_at } = session::of_loose_values();
    // The statement's time is enough to tell it from an older session's, and no system call. A clock that was set back must not
    // make the session's own values foreign to it.
    let sealed_at = clock::statement_start().max(started_at);
    let stamp = Stamp { database, process, sealed_at };
    let length = plaintext.len() + overhead(Kind::Loose);
    let mut value = Varlena::around(length, PLAINTEXT_OFFSET, plaintext)?;
    keyring::with_loose_key(|cache, slot| {
        seal_with(cache, slot, form, Binding::Loose(stamp), value.bytes_mut())
    })?;
    just_sealed::keep(value.bytes(), plaintext);
    Ok(value)
}

/// Where the plaintext of a loose value lies, and that of a bound one without a search tag.
const PLAINTEXT_OFFSET: usize = header_length(Kind::Loose);
const _: () = assert!(PLAINTEXT_OFFSET == header_length(Kind::Bound));

/// Seals a plaintext for a place, with the tenant's active key, which is made if the tenant never had one.
pub fn seal_bound(
    tenant: &[u8],
    form: Form,
    place: &str,
    plaintext: &[u8],
) -> Result<Varlena, Error> {
    let length = plaintext.len() + overhead(Kind::Bound);
    let mut value = Varlena::around(length, PLAINTEXT_OFFSET, plaintext)?;
    keyring::with_active_key(tenant, lifecycle::first_key_on_use, |cache, slot| {
        let stopwatch = cache.stopwatch();
        let bound_to = Place::new(cache.next_salt()?, place);
        LAST_PLACE.with_borrow_mut(|last| last.note(bound_to, place));
        seal_with(cache, slot, form, Binding::Bound(bound_to), value.bytes_mut())?;
        let time = stopwatch.nanoseconds();
        let tally = cache.tally(slot);
        tally.encrypted += 1;
        tally.encrypted_bytes += plaintext.len() as u64;
        tally.encrypt_time += time;
        Ok(())
    })?;
    Ok(value)
}

/// Whether this session has bound this value just now, from a plaintext that came in or a value that it moved.
pub fn is_just_bound(header: &Header) -> bool {
    let (Binding::Bound(place) | Binding::Searchable(place, _)) = &header.binding else {
        return false;
    };
    LAST_PLACE.with_borrow(|last| last.place.as_ref() == Some(place))
}

/// Whether a place is that of a context.
pub fn is_place_of(place: &Place, context: &str) -> bool {
    LAST_PLACE.with_borrow(|last| last.is(place, context)) || place.is_of(context)
}

thread_local! {
    static LAST_PLACE: RefCell<LastPlace> = const { RefCell::new(LastPlace { place: None, context: String::new() }) };
}

/// What a value was bound to last: the constraint asks the same of it right after the trigger, and need not hash it again.
struct LastPlace {
    place: Option<Place>,
    context: String,
}

impl LastPlace {
    /// Longer ones are not kept.
    const LONGEST: usize = 256;

    fn note(&mut self, place: Place, context: &str) {
        self.place = None;
        if context.len() <= Self::LONGEST {
            self.context.clear();
            self.context.push_str(context);
            self.place = Some(place);
        }
    }

    fn is(&self, place: &Place, context: &str) -> bool {
        self.place.as_ref() == Some(place) && self.context == context
    }
}

fn seal_with(
    cache: &mut Cache,
    slot: Slot,
    form: Form,
    binding: Binding,
    buffer: &mut [u8],
) -> Result<(), Error> {
    let key_id = cache.facts(slot).key_id;
    let nonce = cache.next_nonce(slot, transaction::block_scope(), buffer.len() as u64)?;
    let header = Header { key_id, nonce, form, binding };
    let key = cache.bound_message_key(slot, header.kind(), &nonce)?;
    seal_in_place(key, &header, buffer).map_err(|_| Error::TooLarge { bytes: buffer.len() })
}

/// Opens a value where it is expected, in place, and records it: `buffer` holds a copy of its body, and the plaintext
/// afterwards. `named` is the place as the caller wrote it.
pub fn open_bound(
    value: &BoundCiphertext<'_>,
    expected: Expected<'_>,
    named: &[u8],
    buffer: &mut [u8],
) -> Result<(), Error> {
    // As of values of suite 0x01: see `open`.
    if settings::lacks_tenant() {
        return Err(settings::tenant_required("decrypt"));
    }
    open_recorded(value, expected, named, buffer)
}

/// The same for who has said already whose values these are.
pub fn open_recorded(
    value: &BoundCiphertext<'_>,
    expected: Expected<'_>,
    named: &[u8],
    buffer: &mut [u8],
) -> Result<(), Error> {
    let record = usage::before_decryption()?;
    let key_id = value.header().key_id;
    let told = keyring::with_key(key_id, |cache, slot| {
        let stopwatch = cache.stopwatch();
        open_with(cache, slot, value, expected, buffer)?;
        let time = stopwatch.nanoseconds();
        let tally = cache.tally(slot);
        tally.decrypted += 1;
        tally.decrypted_bytes += value.body().len() as u64;
        tally.decrypt_time += time;
        tally.recorded += u64::from(record.is_of_statement());
        Ok(record.tells_more().then(|| Rc::clone(&cache.facts(slot).tenant)))
    })?;
    match told {
        Some(tenant) => usage::record_more(record, tenant, key_id, named),
        None => Ok(()),
    }
}

/// The plaintext of a value, which is not shown: to be bound anew, or compared. Nothing is counted.
pub fn take_out(value: &BoundCiphertext<'_>, expected: Expected<'_>) -> Result<Varlena, Error> {
    let mut plaintext = Varlena::of(value.body())?;
    keyring::with_key(value.header().key_id, |cache, slot| {
        open_with(cache, slot, value, expected, plaintext.bytes_mut())
    })?;
    Ok(plaintext)
}

/// The tenant of a value's key, in the database's encoding.
pub fn tenant_of(value: &BoundCiphertext<'_>) -> Result<Vec<u8>, Error> {
    keyring::with_key(value.header().key_id, |cache, slot| Ok(cache.facts(slot).tenant.to_vec()))
}

pub(super) fn open_with(
    cache: &mut Cache,
    slot: Slot,
    value: &BoundCiphertext<'_>,
    expected: Expected<'_>,
    buffer: &mut [u8],
) -> Result<(), Error> {
    let header = value.header();
    let (key, kind) = (header.key_id, header.kind());
    if kind != Kind::Loose {
        refuse_other_tenant(key, &cache.facts(slot).tenant)?;
    }
    let message_key = cache.bound_message_key(slot, kind, &header.nonce)?;
    value.open_in_place(message_key, expected, buffer).map_err(|error| match error {
        OpenError::Misplaced => misplaced(header, expected),
        OpenError::WrongKey | OpenError::NotAuthentic => {
            Error::NotAuthentic { key, has_context: None }
        }
    })
}

fn misplaced(header: &Header, expected: Expected<'_>) -> Error {
    let key = header.key_id;
    match (expected, header.kind()) {
        (Expected::Place(_), Kind::Loose) => Error::NotInPlace(key),
        (Expected::Session(_), Kind::Loose) => Error::LooseOfOther(key),
        (Expected::Session(_) | Expected::Any, _) => Error::PlaceNotNamed(key),
        (Expected::Place(_), _) => Error::NotOfThisPlace { key, column: None },
    }
}

/// The same plaintext in the same place under the active key of its own tenant, or, loose, of the database. A value that is
/// on that key already is checked and given back as it is.
pub fn reencrypt_bound(bytes: &[u8], expected: Expected<'_>) -> Result<Varlena, Error> {
    let value = BoundCiphertext::parse(bytes)?;
    let header = *value.header();
    let mut fresh = Varlena::around(bytes.len(), header.length(), value.body())?;
    let end = header.length() + value.body().len();
    let (standing, tenant) = keyring::with_key(header.key_id, |cache, slot| {
        let buffer = &mut fresh.bytes_mut()[header.length()..end];
        open_with(cache, slot, &value, expected, buffer)?;
        Ok((super::reencrypt::standing_of(cache, slot), Rc::clone(&cache.facts(slot).tenant)))
    })?;
    if standing == super::Standing::Active {
        fresh.bytes_mut().copy_from_slice(bytes);
        return Ok(fresh);
    }
    let count = |tally: &mut Tally| tally.reencrypted += 1;
    let seal = |cache: &mut Cache, slot: Slot| {
        seal_with(cache, slot, header.form, header.binding, fresh.bytes_mut())?;
        count(cache.tally(slot));
        Ok(())
    };
    match header.kind() {
        Kind::Loose => keyring::with_loose_key(seal)?,
        Kind::Bound | Kind::Searchable => {
            keyring::with_active_key(&tenant, lifecycle::first_key_on_use, seal)?;
        }
    }
    Ok(fresh)
}

/// Whether a value is authentic where it is expected; an error says why not.
pub fn verify_bound(value: &BoundCiphertext<'_>, expected: Expected<'_>) -> Result<(), Error> {
    let plaintext = take_out(value, expected)?;
    plaintext.wipe();
    Ok(())
}

/// A loose value as who is at it may take it: one of this session, or any for who may both encrypt and decrypt. `bytes` are
/// those of the value.
pub fn take_out_loose(value: &BoundCiphertext<'_>, bytes: &[u8]) -> Result<Varlena, Error> {
    if let Some(plaintext) = just_sealed::take(bytes)? {
        return Ok(plaintext);
    }
    match take_out(value, Expected::Session(&session::of_loose_values())) {
        Err(Error::LooseOfOther(_)) if security::may(ENCRYPT) && security::may(DECRYPT) => {
            take_out(value, Expected::Any)
        }
        other => other,
    }
}

/// Functions by which the privileges of `grant_access` are told.
pub const ENCRYPT: &std::ffi::CStr =
    c"fieldcrypt.encrypt_field(pg_catalog.text,pg_catalog.text,pg_catalog.text)";
/// The same of decryption.
pub const DECRYPT: &std::ffi::CStr =
    c"fieldcrypt.decrypt_field(fieldcrypt.encrypted,pg_catalog.text)";
/// The same of re-encryption.
pub const REENCRYPT: &std::ffi::CStr =
    c"fieldcrypt.reencrypt_field(fieldcrypt.encrypted,pg_catalog.text)";
