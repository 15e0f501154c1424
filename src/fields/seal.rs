//! Encryption.

use fieldcrypt_envelope::Context;
use fieldcrypt_envelope::ciphertext::{self, PLAINTEXT_OFFSET};
use fieldcrypt_envelope::tenant_name::TenantNameProblem;

use crate::error::Error;
use crate::keyring::{self, Cache, DEFAULT_TENANT, Slot, Tally};
use crate::lifecycle;
use crate::pg::transaction;
use crate::settings;

/// The tenant that a call encrypts for: what it names, else the session's, else `default`. While the session has one,
/// a call names no other.
#[inline]
pub fn tenant_of_call(named: &[u8]) -> Result<&[u8], Error> {
    match settings::tenant() {
        Some(session_tenant) if !named.is_empty() && named != session_tenant => {
            Err(Error::ForOtherTenant)
        }
        session_tenant => tenant_named(named, session_tenant, "encrypt"),
    }
}

/// The tenant that a new key is for.
pub fn tenant_of_key(named: &[u8]) -> Result<&[u8], Error> {
    tenant_named(named, settings::tenant(), "make a key")
}

/// What a call names, else the session's tenant, else `default`. Where a tenant is required, none is `default` for
/// want of a name.
#[inline]
fn tenant_named<'n>(
    named: &'n [u8],
    session_tenant: Option<&'n [u8]>,
    to: &'static str,
) -> Result<&'n [u8], Error> {
    if named.is_empty() {
        if settings::lacks_tenant() {
            return Err(settings::tenant_required(to));
        }
        return Ok(session_tenant.unwrap_or(DEFAULT_TENANT));
    }
    if named.len() > settings::MAX_TENANT_BYTES {
        return Err(Error::TenantName(TenantNameProblem::Length));
    }
    Ok(named)
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

/// The same, counted as the caller says: one more, so many bytes of plaintext, nanoseconds.
#[inline]
pub(super) fn seal_and_count(
    tenant: &[u8],
    context: &Context<'_>,
    buffer: &mut [u8],
    count: impl Fn(&mut Tally, u64, u64),
) -> Result<(), Error> {
    keyring::with_active_key(tenant, lifecycle::first_key_on_use, |cache, slot| {
        let stopwatch = cache.stopwatch();
        seal_with(cache, slot, context, buffer)?;
        let bytes = buffer.len().saturating_sub(ciphertext::OVERHEAD) as u64;
        count(cache.tally(slot), bytes, stopwatch.nanoseconds());
        Ok(())
    })
}

fn seal_with(
    cache: &mut Cache,
    slot: Slot,
    context: &Context<'_>,
    buffer: &mut [u8],
) -> Result<(), Error> {
    let length = buffer.len().saturating_sub(ciphertext::OVERHEAD) as u64;
    let key_id = cache.facts(slot).key_id;
    let nonce = cache.next_nonce(slot, transaction::block_scope(), length)?;
    let key = cache.message_key(slot, &nonce)?;
    ciphertext::seal_in_place(key, key_id, &nonce, context, buffer)
        .map_err(|_| Error::TooLarge { bytes: buffer.len() })
}

const _: () = assert!(PLAINTEXT_OFFSET == 26, "docs/format.md says so");
