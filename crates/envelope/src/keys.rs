//! The key hierarchy: master key, data key, suite key, message key.
//!
//! Secrets are newtypes: zeroized on drop, no `Debug`, no `Clone`.

mod bound;
mod purpose;
mod search;

use std::fmt;
use std::num::NonZeroU64;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::ciphertext::SUITE_XAES_256_GCM;
use crate::context::canonical_parts;
use crate::nonce::Nonce;
use crate::primitives::{
    Aes256Gcm, HmacSha256, RandomnessUnavailable, cmac_subkey, gcm_open, gcm_seal, hkdf, random,
    xaes_derive,
};

pub use bound::{BoundKey, BoundMessageKey, Kind};
pub use purpose::{Purpose, WrongKey};
pub use search::TagKey;

/// The id of a data key: a random positive 63-bit integer, so that databases that were branched,
/// sharded or merged practically never give one id to two keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(NonZeroU64);

impl KeyId {
    /// `None` unless positive.
    pub fn new(id: i64) -> Option<Self> {
        u64::try_from(id).ok().and_then(NonZeroU64::new).map(Self)
    }

    /// A new one.
    pub fn generate() -> Result<Self, RandomnessUnavailable> {
        loop {
            let mut bytes = [0; 8];
            random(&mut bytes)?;
            if let Some(id) = Self::new(i64::from_be_bytes(bytes) & i64::MAX) {
                return Ok(id);
            }
        }
    }

    /// As Postgres's `bigint` holds it.
    pub fn as_i64(self) -> i64 {
        self.0.get() as i64
    }

    pub(crate) fn to_be_bytes(self) -> [u8; 8] {
        self.0.get().to_be_bytes()
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The public name of a master key, 16 bytes, derived from it. Compare it whole; the abbreviation
/// that `Display` gives is for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 16]);

impl Fingerprint {
    /// All of it, 32 hex digits.
    pub fn to_hex(self) -> String {
        base16ct::lower::encode_string(&self.0)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0[..4] {
            write!(f, "{byte:02X}")?;
        }
        f.write_str("…")
    }
}

/// A master encryption key (MEK). The 32 bytes themselves are gone once it is derived from them.
#[derive(ZeroizeOnDrop)]
pub struct MasterKey {
    #[zeroize(skip)]
    fingerprint: Fingerprint,
    wrap: [u8; 32],
    export: [u8; 32],
}

impl MasterKey {
    /// Derives the three keys from the 32 bytes, which are input keying material and nothing else.
    pub fn derive(key: &[u8; 32]) -> Self {
        Self {
            fingerprint: Fingerprint(*hkdf(key, &[b"mek-fingerprint"])),
            wrap: *hkdf(key, &[b"wrap"]),
            export: *hkdf(key, &[b"export"]),
        }
    }

    /// Its public name.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The key that authenticates exports of the key table.
    pub fn export_key(&self) -> &[u8; 32] {
        &self.export
    }

    /// `0x01 ‖ 24 random bytes ‖ XAES-256-GCM(wrap, those, aad = metadata, DEK)`: 73 bytes.
    pub fn wrap_key(
        &self,
        key: &DataKey,
        metadata: &KeyMetadata<'_>,
    ) -> Result<WrappedKey, RandomnessUnavailable> {
        let mut nonce = [0; 24];
        random(&mut nonce)?;
        self.wrap_with_nonce(key, metadata, nonce).ok_or(RandomnessUnavailable)
    }

    fn wrap_with_nonce(
        &self,
        key: &DataKey,
        metadata: &KeyMetadata<'_>,
        nonce: [u8; 24],
    ) -> Option<WrappedKey> {
        let mut sealed = Zeroizing::new(key.key);
        let (cipher, gcm_nonce) = self.wrapping_cipher(&nonce)?;
        let aad = metadata.associated_data(self.fingerprint, &key.check(metadata.key_id));
        let tag = gcm_seal(&cipher, &gcm_nonce, &aad, sealed.as_mut_slice())?;
        let mut out = [0; WRAPPED_KEY_LENGTH];
        out[0] = WRAP_VERSION;
        out[1..25].copy_from_slice(&nonce);
        out[25..57].copy_from_slice(sealed.as_slice());
        out[57..].copy_from_slice(&tag);
        Some(out)
    }

    /// Wraps a key that `self` wraps under `target`, and opens the new wrapping again: what comes back
    /// is known to hold the same key, and that one is known to be the row's by its `dek-check`.
    pub fn rewrap(
        &self,
        target: &Self,
        wrapped: &[u8],
        metadata: &KeyMetadata<'_>,
        check: &[u8],
    ) -> Result<WrappedKey, RewrapError> {
        let key = self.unwrap_key(wrapped, metadata, check).map_err(RewrapError::Unwrap)?;
        if !same_bytes(&key.check(metadata.key_id), check) {
            return Err(RewrapError::Unwrap(UnwrapError::NotAuthentic));
        }
        let rewrapped =
            target.wrap_key(&key, metadata).map_err(|_| RewrapError::RandomnessUnavailable)?;
        let opened = target
            .unwrap_key(&rewrapped, metadata, check)
            .map_err(|_| RewrapError::Verification)?;
        if !same_bytes(&opened.key, &key.key) || !same_bytes(&opened.check(metadata.key_id), check)
        {
            return Err(RewrapError::Verification);
        }
        Ok(rewrapped)
    }

    /// Opens a wrapped key. `check` is the `dek-check` stored beside it.
    pub fn unwrap_key(
        &self,
        wrapped: &[u8],
        metadata: &KeyMetadata<'_>,
        check: &[u8],
    ) -> Result<DataKey, UnwrapError> {
        let wrapped: &WrappedKey = wrapped.try_into().map_err(|_| UnwrapError::Malformed)?;
        let (&[version], rest) = wrapped.split_first_chunk().ok_or(UnwrapError::Malformed)?;
        let (nonce, rest) = rest.split_first_chunk::<24>().ok_or(UnwrapError::Malformed)?;
        let (sealed, tag) = rest.split_first_chunk::<32>().ok_or(UnwrapError::Malformed)?;
        let tag: &[u8; 16] = tag.try_into().map_err(|_| UnwrapError::Malformed)?;
        if version != WRAP_VERSION {
            return Err(UnwrapError::Malformed);
        }
        let (cipher, gcm_nonce) = self.wrapping_cipher(nonce).ok_or(UnwrapError::Malformed)?;
        let aad = metadata.associated_data(self.fingerprint, check);
        let mut key = DataKey { key: *sealed, purpose: Purpose::parse(metadata.purpose) };
        if gcm_open(&cipher, &gcm_nonce, &aad, &mut key.key, tag) {
            Ok(key)
        } else {
            Err(UnwrapError::NotAuthentic)
        }
    }

    fn wrapping_cipher(&self, nonce: &[u8; 24]) -> Option<(Aes256Gcm, [u8; 12])> {
        let (prefix, rest) = nonce.split_first_chunk::<12>()?;
        let cipher = xaes_derive(&self.wrap, &cmac_subkey(&self.wrap), prefix);
        Some((cipher, rest.try_into().ok()?))
    }
}

/// A data key as `fieldcrypt.encryption_keys` stores it.
pub type WrappedKey = [u8; WRAPPED_KEY_LENGTH];
/// Bytes of a [`WrappedKey`].
pub const WRAPPED_KEY_LENGTH: usize = 1 + 24 + 32 + 16;
const WRAP_VERSION: u8 = 0x01;

/// Why a wrapped key did not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnwrapError {
    /// Not the 73 bytes of a wrapped key, or of a version that this code doesn't know.
    Malformed,
    /// Damaged, moved from another row, or wrapped by another master key.
    NotAuthentic,
}

/// Why a key was not wrapped under another master key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RewrapError {
    /// The old wrapping did not open.
    Unwrap(UnwrapError),
    /// The operating system gave no random bytes.
    RandomnessUnavailable,
    /// The new wrapping did not open to the same key: a fault of the machine.
    Verification,
}

/// Compares in a time that depends on the lengths only.
fn same_bytes(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b));
    a.len() == b.len() && std::hint::black_box(difference) == 0
}

/// What a wrapped key is authenticated with, so that it can't be moved to another row.
#[derive(Debug, Clone, Copy)]
pub struct KeyMetadata<'a> {
    /// The tenant, UTF-8.
    pub tenant: &'a str,
    /// The key's id.
    pub key_id: KeyId,
    /// Its version: 1 for the tenant's first.
    pub version: u32,
    /// What the key is for: the name of a [`Purpose`].
    pub purpose: &'a str,
    /// The suite's name: `XAES-256-GCM`.
    pub algorithm: &'a str,
}

impl KeyMetadata<'_> {
    fn associated_data(&self, master_key: Fingerprint, check: &[u8]) -> Vec<u8> {
        canonical_parts(&[
            b"pg_fieldcrypt/v1 wrapped key",
            self.tenant.as_bytes(),
            &self.key_id.to_be_bytes(),
            &self.version.to_be_bytes(),
            self.purpose.as_bytes(),
            self.algorithm.as_bytes(),
            &master_key.0,
            check,
        ])
    }
}

/// The states of a data key, NIST SP 800-57 part 1, section 7.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    /// Encrypts and decrypts.
    Active,
    /// Decrypts only.
    Deactivated,
    /// Neither, until resumed.
    Suspended,
    /// Decrypts only, for re-encryption.
    Compromised,
    /// Erased.
    Destroyed,
}

impl KeyState {
    const ALL: [Self; 5] =
        [Self::Active, Self::Deactivated, Self::Suspended, Self::Compromised, Self::Destroyed];

    /// As column `state` says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Deactivated => "deactivated",
            Self::Suspended => "suspended",
            Self::Compromised => "compromised",
            Self::Destroyed => "destroyed",
        }
    }

    /// The state of that name.
    pub fn parse(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name().as_bytes() == name)
    }
}

/// A data encryption key (DEK), 256 random bits, and what it is for.
#[derive(ZeroizeOnDrop)]
pub struct DataKey {
    key: [u8; 32],
    /// As its wrapping authenticates it; none of a key that was not stored yet, or whose purpose this version doesn't know.
    #[zeroize(skip)]
    purpose: Option<Purpose>,
}

impl DataKey {
    /// A new one, from the operating system's random source.
    pub fn generate() -> Result<Self, RandomnessUnavailable> {
        let mut key = Self { key: [0; 32], purpose: None };
        random(&mut key.key)?;
        Ok(key)
    }

    /// The key under which fields of suite 0x01 are sealed with XAES-256-GCM.
    pub fn suite_key(&self, key_id: KeyId) -> SuiteKey {
        self.key_of_suite(SUITE_XAES_256_GCM, key_id)
    }

    /// `HKDF(DEK, "suite" ‖ suite byte ‖ key id)`, 32 bytes: no two suites share a key.
    fn key_of_suite(&self, suite: u8, key_id: KeyId) -> SuiteKey {
        let key = hkdf(&self.key, &[b"suite", &[suite], &key_id.to_be_bytes()]);
        SuiteKey { k1: *cmac_subkey(&key), key: *key }
    }

    /// The key that authenticates rows of the audit log, for a data key of purpose `audit`.
    pub fn audit_key(&self, key_id: KeyId) -> AuditKey {
        AuditKey(*hkdf(&self.key, &[b"audit", &key_id.to_be_bytes()]))
    }

    /// 16 public bytes by which a key is recognised without opening anything: stored, compared on
    /// import, authenticated by the wrapping.
    pub fn check(&self, key_id: KeyId) -> [u8; 16] {
        *hkdf(&self.key, &[b"dek-check", &key_id.to_be_bytes()])
    }
}

/// The HMAC-SHA256 key of a data key of purpose `audit`.
#[derive(ZeroizeOnDrop)]
pub struct AuditKey([u8; 32]);

impl AuditKey {
    /// `HMAC-SHA256(key, message)`, FIPS 198-1. Who authenticates different kinds of messages makes
    /// sure that no two kinds begin alike.
    pub fn mac(&self, message: &[u8]) -> [u8; 32] {
        let mut mac = HmacSha256::new(&self.0);
        mac.update(message);
        mac.finish()
    }

    /// Whether `mac` is that of the message, compared in constant time.
    pub fn is_mac_of(&self, message: &[u8], mac: &[u8; 32]) -> bool {
        let mut computed = HmacSha256::new(&self.0);
        computed.update(message);
        computed.is(mac)
    }
}

impl Zeroize for AuditKey {
    fn zeroize(&mut self) {
        self.0.zeroize();
    }
}

/// The XAES-256-GCM key of a data key, with its CMAC subkey: 48 bytes, what a key cache holds.
#[derive(ZeroizeOnDrop)]
pub struct SuiteKey {
    key: [u8; 32],
    k1: [u8; 16],
}

impl SuiteKey {
    /// The AES-256-GCM key for the nonces with this prefix. Two AES key schedules and three blocks:
    /// worth keeping while nonces share a prefix.
    pub fn message_key(&self, nonce: &Nonce) -> MessageKey {
        MessageKey(xaes_derive(&self.key, &self.k1, nonce.prefix()))
    }
}

impl Zeroize for SuiteKey {
    fn zeroize(&mut self) {
        self.key.zeroize();
        self.k1.zeroize();
    }
}

/// An AES-256-GCM key, scheduled. Serves the nonces of one prefix under one suite key.
#[derive(ZeroizeOnDrop)]
pub struct MessageKey(Aes256Gcm);

impl MessageKey {
    pub(crate) fn seal(&self, nonce: &Nonce, aad: &[u8], buffer: &mut [u8]) -> Option<[u8; 16]> {
        gcm_seal(&self.0, &nonce.gcm_nonce(), aad, buffer)
    }

    pub(crate) fn open(
        &self,
        nonce: &Nonce,
        aad: &[u8],
        buffer: &mut [u8],
        tag: &[u8; 16],
    ) -> Result<(), NotAuthentic> {
        if gcm_open(&self.0, &nonce.gcm_nonce(), aad, buffer, tag) {
            Ok(())
        } else {
            Err(NotAuthentic)
        }
    }
}

/// A value did not open: tampered with, or bound to another context. The two can't be told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAuthentic;

#[cfg(test)]
mod tests;
