//! Values to the active key.

use std::rc::Rc;

use fieldcrypt_envelope::ciphertext::PLAINTEXT_OFFSET;
use fieldcrypt_envelope::{AnyCiphertext, Ciphertext, Context, Expected, KeyId, KeyState};

use super::bound::verify_bound;
use super::context::with_context;
use super::open::open_with;
use super::seal::seal_and_count;
use crate::error::Error;
use crate::keyring::{self, Cache, Slot, Tally};
use crate::pg::encoding;
use crate::pg::values::Varlena;
use crate::settings;

/// The same plaintext under the active key of the value's own tenant. It goes from the old value's key
/// to the new one's without leaving the result's own memory. A value that is on the active key already
/// is checked and given back as it is.
pub fn reencrypt(bytes: &[u8], context: &Context<'_>) -> Result<Varlena, Error> {
    let value = Ciphertext::parse(bytes)?;
    let mut fresh = Varlena::around(bytes.len(), 0, bytes)?;
    let plaintext = PLAINTEXT_OFFSET..PLAINTEXT_OFFSET + value.plaintext_length();
    let buffer = &mut fresh.bytes_mut()[plaintext];
    let (standing, tenant) = keyring::with_key(value.key_id(), |cache, slot| {
        open_with(cache, slot, &value, context, buffer)?;
        Ok((standing_of(cache, slot), Rc::clone(&cache.facts(slot).tenant)))
    })?;
    if standing == Standing::Active {
        fresh.bytes_mut().copy_from_slice(bytes);
    } else {
        let count = |tally: &mut Tally, _, _| tally.reencrypted += 1;
        seal_and_count(&tenant, context, fresh.bytes_mut(), count)?;
    }
    Ok(fresh)
}

/// The same plaintext bound to another context, under the active key of the value's own tenant.
pub fn rebind(bytes: &[u8], context: &Context<'_>, new: &Context<'_>) -> Result<Varlena, Error> {
    // It is work of an application on its tenant's values, as decryption is.
    if settings::lacks_tenant() {
        return Err(settings::tenant_required("bind values anew"));
    }
    let value = Ciphertext::parse(bytes)?;
    let mut fresh = Varlena::around(bytes.len(), 0, bytes)?;
    let plaintext = PLAINTEXT_OFFSET..PLAINTEXT_OFFSET + value.plaintext_length();
    let buffer = &mut fresh.bytes_mut()[plaintext];
    let tenant = keyring::with_key(value.key_id(), |cache, slot| {
        open_with(cache, slot, &value, context, buffer)?;
        Ok(Rc::clone(&cache.facts(slot).tenant))
    })?;
    seal_and_count(&tenant, new, fresh.bytes_mut(), |tally, _, _| tally.reencrypted += 1)?;
    Ok(fresh)
}

/// Whether a value opens under a context; an error says why not. Nothing is shown, so it counts as no decryption.
fn verify(bytes: &[u8], context: &Context<'_>) -> Result<(), Error> {
    let value = Ciphertext::parse(bytes)?;
    let mut plaintext = Varlena::of(value.body())?;
    let result = keyring::with_key(value.key_id(), |cache, slot| {
        open_with(cache, slot, &value, context, plaintext.bytes_mut())
    });
    plaintext.wipe();
    result
}

/// Whether a value of any suite is authentic for the row whose context this is, in the database's encoding.
pub fn verify_in_context(bytes: &[u8], context: &[u8]) -> Result<(), Error> {
    match AnyCiphertext::parse(bytes)? {
        AnyCiphertext::Field(_) => with_context(context, |context| verify(bytes, context)),
        AnyCiphertext::Bound(value) => {
            verify_bound(&value, Expected::Place(&encoding::to_string(context)?))
        }
    }
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

/// How a key stands. A key that may not decrypt is an error.
pub fn standing(key_id: KeyId) -> Result<Standing, Error> {
    keyring::with_key(key_id, |cache, slot| Ok(standing_of(cache, slot)))
}

pub(super) fn standing_of(cache: &Cache, slot: Slot) -> Standing {
    match cache.facts(slot).state {
        KeyState::Active => Standing::Active,
        KeyState::Compromised => Standing::Compromised,
        KeyState::Deactivated | KeyState::Suspended | KeyState::Destroyed => Standing::Deactivated,
    }
}
