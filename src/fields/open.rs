//! Decryption.

use std::rc::Rc;

use fieldcrypt_envelope::{Ciphertext, Context, KeyId, NotAuthentic};

use crate::error::Error;
use crate::keyring::{self, Cache, Slot};
use crate::settings;
use crate::usage;

/// Opens a value in place: `buffer` holds a copy of its body, and the plaintext afterwards. `named` is the context as
/// the caller wrote it.
#[inline]
pub fn open(
    value: &Ciphertext<'_>,
    context: &Context<'_>,
    named: &[u8],
    buffer: &mut [u8],
) -> Result<(), Error> {
    // First of all: who has said nothing of a tenant learns nothing of any value. Re-encryption, which shows none,
    // needs none.
    if settings::lacks_tenant() {
        return Err(settings::tenant_required("decrypt"));
    }
    let record = usage::before_decryption()?;
    let told = keyring::with_key(value.key_id(), |cache, slot| {
        let stopwatch = cache.stopwatch();
        open_with(cache, slot, value, context, buffer)?;
        let tally = cache.tally(slot);
        tally.decrypted += 1;
        tally.decrypted_bytes += value.plaintext_length() as u64;
        tally.decrypt_time += stopwatch.nanoseconds();
        tally.recorded += u64::from(record.is_of_statement());
        Ok(record.tells_more().then(|| Rc::clone(&cache.facts(slot).tenant)))
    })?;
    match told {
        Some(tenant) => usage::record_more(record, tenant, value.key_id(), named),
        None => Ok(()),
    }
}

#[inline]
pub(super) fn open_with(
    cache: &mut Cache,
    slot: Slot,
    value: &Ciphertext<'_>,
    context: &Context<'_>,
    buffer: &mut [u8],
) -> Result<(), Error> {
    refuse_other_tenant(value.key_id(), &cache.facts(slot).tenant)?;
    let key = cache.message_key(slot, value.nonce())?;
    value.open_in_place(key, context, buffer).map_err(|NotAuthentic| Error::NotAuthentic {
        key: value.key_id(),
        has_context: Some(!context.is_none()),
    })
}

pub(super) fn refuse_other_tenant(key: KeyId, tenant: &[u8]) -> Result<(), Error> {
    match settings::tenant() {
        Some(session_tenant) if session_tenant != tenant => Err(Error::OtherTenant(key)),
        _ => Ok(()),
    }
}
