//! Ed25519 (RFC 8032), the one primitive that this crate needs besides those of the core.

use ed25519_dalek::{Signature, Signer};
use fieldcrypt_envelope::{RandomnessUnavailable, random};
use zeroize::Zeroizing;

/// A private key, RFC 8032 section 5.1.5. On the heap, so that moving it leaves no copies; zeroized
/// on drop.
pub struct Ed25519PrivateKey(Box<ed25519_dalek::SigningKey>);

impl Ed25519PrivateKey {
    /// 32 bytes from the operating system.
    pub fn generate() -> Result<Self, RandomnessUnavailable> {
        let mut seed = Zeroizing::new([0; 32]);
        random(seed.as_mut_slice())?;
        Ok(Self::from_seed(&seed))
    }

    /// The key of these 32 bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(Box::new(ed25519_dalek::SigningKey::from_bytes(seed)))
    }

    /// Ed25519, RFC 8032 section 5.1.6. Deterministic: needs no randomness.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    /// The public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }
}

/// A public key, RFC 8032 section 5.1.5.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ed25519PublicKey(ed25519_dalek::VerifyingKey);

impl Ed25519PublicKey {
    /// `None` for bytes that are no point of the curve, or one of small order, under which anything
    /// could be signed.
    pub fn from_bytes(bytes: &[u8; 32]) -> Option<Self> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(bytes).ok()?;
        (!key.is_weak()).then_some(Self(key))
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Ed25519, RFC 8032 section 5.1.7, refusing also the malleable encodings that the RFC leaves to
    /// the implementation.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let Ok(signature) = Signature::from_slice(signature) else { return false };
        self.0.verify_strict(message, &signature).is_ok()
    }
}
