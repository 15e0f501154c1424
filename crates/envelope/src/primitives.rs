//! The one place that imports a cipher, a hash or a random source. One function a primitive.

use aes::Aes256Enc;
use aes_gcm::aead::consts::U12;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::aes::Block;
use aes_gcm::aes::cipher::BlockCipherEncrypt;
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use rand::TryRng;
use rand::rngs::SysRng;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// AES-256-GCM with the encryption key schedule only: GCM never runs AES backwards.
pub type Aes256Gcm = aes_gcm::AesGcm<Aes256Enc, U12>;

/// The operating system gave no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RandomnessUnavailable;

/// Fills `out` with random bytes from the operating system (`getrandom(2)`); no state is kept in
/// user space, so there is none to inherit over a fork. The generator that is asked is an empty struct.
pub fn random(out: &mut [u8]) -> Result<(), RandomnessUnavailable> {
    const { assert!(size_of::<SysRng>() == 0) };
    SysRng.try_fill_bytes(out).map_err(|_| RandomnessUnavailable)
}

/// `HKDF-SHA256(salt = "pg_fieldcrypt/v1", ikm, info = the parts concatenated)`, RFC 5869.
///
/// `out` is at most 32 bytes here, far below HKDF's limit of 255 × 32.
pub fn hkdf<const N: usize>(ikm: &[u8; 32], info: &[&[u8]]) -> Zeroizing<[u8; N]> {
    const { assert!(N <= 32) };
    let mut out = Zeroizing::new([0; N]);
    let extracted = Hkdf::<Sha256>::new(Some(b"pg_fieldcrypt/v1"), ikm);
    let expanded = extracted.expand_multi_info(info, out.as_mut_slice());
    debug_assert!(expanded.is_ok(), "HKDF-SHA256 expands to 32 bytes");
    out
}

/// SHA-256 (FIPS 180-4) over the parts concatenated.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// `HMAC-SHA256(key, message)` (FIPS 198-1) over a message that comes in pieces.
pub struct HmacSha256(Hmac<Sha256>);

impl HmacSha256 {
    /// No message yet.
    pub fn new(key: &[u8; 32]) -> Self {
        // A key shorter than SHA-256's block is padded with zeros to it: the standard's K0.
        let mut block = Zeroizing::new([0; 64]);
        block[..32].copy_from_slice(key);
        Self(<Hmac<Sha256> as KeyInit>::new((&*block).into()))
    }

    /// Appends to the message.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The authentication code.
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into_bytes().into()
    }

    /// Compares in constant time.
    pub fn is(self, expected: &[u8; 32]) -> bool {
        self.0.verify(expected.into()).is_ok()
    }
}

/// The CMAC subkey `K1 = AES-256(K, 0^128) << 1`, reduced modulo x^128 + x^7 + x^2 + x + 1
/// (NIST SP 800-38B, section 6.1). XAES-256-GCM keeps it with the key.
pub fn cmac_subkey(key: &[u8; 32]) -> Zeroizing<[u8; 16]> {
    let mut block = Zeroizing::new([0u8; 16]);
    Aes256Enc::new(key.into()).encrypt_block(block_of(&mut block));
    let doubled = u128::from_be_bytes(*block);
    // The top bit is secret, so no branch on it.
    let reduction = (doubled >> 127) * 0x87;
    *block = ((doubled << 1) ^ reduction).to_be_bytes();
    block
}

/// The AES-256-GCM key of XAES-256-GCM (C2SP) for the first 12 bytes of the nonce:
/// `AES(K, "\x00\x01X\x00" ‖ N[..12] ⊕ K1) ‖ AES(K, "\x00\x02X\x00" ‖ N[..12] ⊕ K1)`,
/// which is the counter-mode KDF of NIST SP 800-108r1 over CMAC-AES-256.
pub fn xaes_derive(key: &[u8; 32], k1: &[u8; 16], prefix: &[u8; 12]) -> Aes256Gcm {
    let aes = Aes256Enc::new(key.into());
    let mut derived = Zeroizing::new([0u8; 32]);
    let (halves, _) = derived.as_chunks_mut::<16>();
    for (counter, half) in (1u8..).zip(halves) {
        half[..4].copy_from_slice(&[0, counter, b'X', 0]);
        half[4..].copy_from_slice(prefix);
        for (byte, mask) in half.iter_mut().zip(k1) {
            *byte ^= mask;
        }
        aes.encrypt_block(block_of(half));
    }
    Aes256Gcm::new((&*derived).into())
}

fn block_of(bytes: &mut [u8; 16]) -> &mut Block {
    bytes.into()
}

/// AES-256-GCM authenticated encryption in place (NIST SP 800-38D, section 7.1). The key must never
/// see the same nonce again. Plaintext limit 2^36 − 32 bytes, far above Postgres's 1 GB value.
pub fn gcm_seal(
    key: &Aes256Gcm,
    nonce: &[u8; 12],
    aad: &[u8],
    buffer: &mut [u8],
) -> Option<[u8; 16]> {
    key.encrypt_inout_detached(nonce.into(), aad, buffer.into()).ok().map(Into::into)
}

/// AES-256-GCM authenticated decryption in place (NIST SP 800-38D, section 7.2). The tag is checked,
/// in constant time, before a single byte is decrypted; on failure `buffer` still holds ciphertext.
pub fn gcm_open(
    key: &Aes256Gcm,
    nonce: &[u8; 12],
    aad: &[u8],
    buffer: &mut [u8],
    tag: &[u8; 16],
) -> bool {
    key.decrypt_inout_detached(nonce.into(), aad, buffer.into(), tag.into()).is_ok()
}

#[cfg(test)]
mod tests;
