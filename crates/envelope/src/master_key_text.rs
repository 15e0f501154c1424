//! The text form of master keys: one a line, 64 hex digits or strict base64 of 32 bytes.
//!
//! Never raw bytes, which would take a passphrase for a key. `#` starts a comment; empty lines are
//! skipped. The first key wraps, the others only unwrap.

use base64ct::{Base64, Encoding};
use zeroize::Zeroizing;

use crate::keys::MasterKey;
use crate::primitives::{RandomnessUnavailable, random};

/// Master keys that may be loaded at once.
pub const MAX_KEYS: usize = 16;

/// Why a text holds no master keys. Line numbers start at 1; nothing of the text is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MasterKeyTextError {
    /// No key in it: empty, or only comments.
    Empty,
    /// Hex digits or base64, but not of 32 bytes.
    WrongLength {
        /// The line.
        line: usize,
        /// Bytes that it holds.
        bytes: usize,
    },
    /// Neither hex digits nor base64.
    NotHexOrBase64 {
        /// The line.
        line: usize,
    },
    /// More than [`MAX_KEYS`].
    TooMany,
}

/// Reads the keys, in order; a key that appears twice is taken once.
pub fn parse(text: &[u8]) -> Result<Vec<MasterKey>, MasterKeyTextError> {
    // Room for all: a vector that grew would leave unwiped copies of the keys on the heap.
    let mut keys = Vec::with_capacity(MAX_KEYS);
    parse_each(text, |key| keys.push(key))?;
    Ok(keys)
}

/// As [`parse`], but hands each key over as it is read, for a caller that has a better place for
/// secrets than a `Vec`. After an error the keys handed over so far must not be used.
pub fn parse_each(text: &[u8], mut take: impl FnMut(MasterKey)) -> Result<(), MasterKeyTextError> {
    let mut known = Vec::new();
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let uncommented = line.split(|byte| *byte == b'#').next().unwrap_or_default();
        let encoded = uncommented.trim_ascii();
        if encoded.is_empty() {
            continue;
        }
        let key = MasterKey::derive(&*decode(encoded, index + 1)?);
        if known.contains(&key.fingerprint()) {
            continue;
        }
        if known.len() == MAX_KEYS {
            return Err(MasterKeyTextError::TooMany);
        }
        known.push(key.fingerprint());
        take(key);
    }
    if known.is_empty() {
        return Err(MasterKeyTextError::Empty);
    }
    Ok(())
}

/// The text of a new key: 32 bytes from the operating system's random source, as a line of hex digits.
///
/// For people who make key files. The extension makes none: a master key that began its life in a
/// database server could have been seen there.
pub fn generate() -> Result<Zeroizing<Vec<u8>>, RandomnessUnavailable> {
    let mut key = Zeroizing::new([0; 32]);
    random(key.as_mut_slice())?;
    let mut text = Zeroizing::new(vec![b'\n'; 65]);
    // 64 digits fit 64 places.
    base16ct::lower::encode(key.as_slice(), &mut text[..64]).map_err(|_| RandomnessUnavailable)?;
    Ok(text)
}

fn decode(encoded: &[u8], line: usize) -> Result<Zeroizing<[u8; 32]>, MasterKeyTextError> {
    let mut key = Zeroizing::new([0; 32]);
    let is_hex = encoded.iter().all(u8::is_ascii_hexdigit);
    if is_hex && encoded.len() == 64 {
        return match base16ct::mixed::decode(encoded, key.as_mut_slice()) {
            Ok(_) => Ok(key),
            Err(_) => Err(MasterKeyTextError::NotHexOrBase64 { line }),
        };
    }
    // One byte more than a key's 44 characters can hold, so that a longer text is told from a wrong one.
    let mut buffer = Zeroizing::new([0; 33]);
    match Base64::decode(encoded, buffer.as_mut_slice()) {
        Ok(bytes) if bytes.len() == 32 => {
            key.copy_from_slice(bytes);
            Ok(key)
        }
        _ if is_hex => {
            Err(MasterKeyTextError::WrongLength { line, bytes: encoded.len().div_ceil(2) })
        }
        Ok(bytes) => Err(MasterKeyTextError::WrongLength { line, bytes: bytes.len() }),
        Err(_) => match length_of_long_base64(encoded) {
            Some(bytes) => Err(MasterKeyTextError::WrongLength { line, bytes }),
            None => Err(MasterKeyTextError::NotHexOrBase64 { line }),
        },
    }
}

/// How many bytes a base64 text holds that did not fit the buffer; `None` if it is no such text.
fn length_of_long_base64(encoded: &[u8]) -> Option<usize> {
    let digits =
        encoded.strip_suffix(b"==").or_else(|| encoded.strip_suffix(b"=")).unwrap_or(encoded);
    let well_formed = encoded.len() > 44
        && encoded.len().is_multiple_of(4)
        && digits.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'));
    well_formed.then_some(digits.len() * 3 / 4)
}
