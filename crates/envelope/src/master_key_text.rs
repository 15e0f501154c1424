//! The text form of master keys: one a line, 64 hex digits or base64 of 32 bytes.
//!
//! Around a key may stand what editors, shells and secret stores put there and what can mean nothing else: a
//! byte-order mark, UTF-16 that has one, quotes, `NAME=`, `0x` or `\\x`; base64 may lack its padding and use the
//! alphabet for addresses (RFC 4648, section 5). Never raw bytes, which would take a passphrase for a key. `#`
//! starts a comment; empty lines are skipped. The first key wraps, the others only unwrap.

use std::fmt;

use base64ct::{Base64, Base64Unpadded, Base64Url, Base64UrlUnpadded, Encoding};
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
        /// What it looks like.
        seen: Seen,
    },
    /// More than [`MAX_KEYS`].
    TooMany,
}

/// What a line looks like that is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Bytes that are no text.
    Bytes,
    /// UTF-16 without a byte-order mark.
    Utf16,
    /// A private key or certificate in PEM.
    Pem,
    /// The beginning of JSON.
    Json,
    /// Several words.
    Words,
    /// Letters that are base64 of 32 bytes if one leaves out the padding, and may be a passphrase.
    Letters,
    /// Something else.
    Characters(usize),
}

impl fmt::Display for MasterKeyTextError {
    /// What the text holds, as the object of a sentence.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(out, "no master key"),
            Self::WrongLength { line, bytes } => {
                write!(out, "{bytes} bytes in line {line}; a master key has 32")
            }
            Self::NotHexOrBase64 { line, seen } => {
                write!(out, "neither hex digits nor base64 in line {line}, but {seen}")
            }
            Self::TooMany => write!(out, "more than {MAX_KEYS} master keys"),
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes => {
                write!(out, "bytes that are no text (a raw key has to be written as hex digits)")
            }
            Self::Utf16 => write!(out, "what looks like UTF-16 (save it as plain text)"),
            Self::Pem => {
                write!(out, "what looks like PEM (a private key or certificate is no master key)")
            }
            Self::Json => write!(out, "what looks like JSON (give the key alone)"),
            Self::Words => write!(out, "several words (a passphrase is no master key)"),
            Self::Letters => {
                write!(
                    out,
                    "43 letters of one case (a passphrase? base64 of a random key has both cases)"
                )
            }
            Self::Characters(count) => write!(out, "{count} characters of another kind"),
        }
    }
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
    let narrowed = from_utf16(text);
    let text = narrowed.as_ref().map_or(text, |narrowed| narrowed.as_slice());
    let mut known = Vec::new();
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let encoded = without_wrapping(line);
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

/// The bytes of a text in UTF-16 that begins with its byte-order mark, as shells of Windows write it; what is not
/// ASCII becomes a byte that no key has.
fn from_utf16(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (units, is_little_endian) = match text {
        [0xFF, 0xFE, units @ ..] => (units, true),
        [0xFE, 0xFF, units @ ..] => (units, false),
        _ => return None,
    };
    let (pairs, rest) = units.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    // Room for all at once: a vector that grew would leave unwiped copies.
    let mut narrowed = Zeroizing::new(Vec::with_capacity(pairs.len()));
    narrowed.extend(pairs.iter().map(|[first, second]| {
        let (low, high) = if is_little_endian { (first, second) } else { (second, first) };
        if *high == 0 && low.is_ascii() { *low } else { 0xFF }
    }));
    Some(narrowed)
}

/// A line without what may stand around a key.
fn without_wrapping(line: &[u8]) -> &[u8] {
    let line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
    let uncommented = line.split(|byte| *byte == b'#').next().unwrap_or_default();
    unquoted(assigned(uncommented.trim_ascii()))
}

/// The value of `NAME=value`. A `=` of base64 ends its text, so nothing follows it there.
fn assigned(text: &[u8]) -> &[u8] {
    let Some(at) = text.iter().position(|byte| *byte == b'=') else { return text };
    let (name, value) = (&text[..at], text[at + 1..].trim_ascii());
    let name = name.strip_prefix(b"export ").unwrap_or(name).trim_ascii();
    let is_name = name.first().is_some_and(|first| !first.is_ascii_digit())
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    if is_name && !matches!(value, b"" | b"=") { value } else { text }
}

fn unquoted(text: &[u8]) -> &[u8] {
    match text {
        [b'"', inner @ .., b'"'] | [b'\'', inner @ .., b'\''] => inner.trim_ascii(),
        _ => text,
    }
}

fn decode(encoded: &[u8], line: usize) -> Result<Zeroizing<[u8; 32]>, MasterKeyTextError> {
    let mut key = Zeroizing::new([0; 32]);
    if let Some(digits) = hex_of_key(encoded)
        && base16ct::mixed::decode(digits, key.as_mut_slice()).is_ok()
    {
        return Ok(key);
    }
    // One byte more than a key's 44 characters can hold, so that a longer text is told from a wrong one.
    let mut buffer = Zeroizing::new([0; 33]);
    let is_hex = encoded.iter().all(u8::is_ascii_hexdigit);
    let bytes = match from_base64(encoded, &mut buffer) {
        Some(32) if may_be_a_passphrase(encoded) => {
            return Err(MasterKeyTextError::NotHexOrBase64 { line, seen: Seen::Letters });
        }
        Some(32) => {
            key.copy_from_slice(&buffer[..32]);
            return Ok(key);
        }
        _ if is_hex => Some(encoded.len().div_ceil(2)),
        Some(bytes) => Some(bytes),
        None => length_of_long_base64(encoded),
    };
    Err(match bytes {
        Some(bytes) => MasterKeyTextError::WrongLength { line, bytes },
        None => MasterKeyTextError::NotHexOrBase64 { line, seen: looks_like(encoded) },
    })
}

/// The digits of 32 bytes, which may follow `0x` or, as Postgres writes bytes, `\x`.
fn hex_of_key(encoded: &[u8]) -> Option<&[u8]> {
    let digits = [b"0x", b"0X", b"\\x"]
        .iter()
        .find_map(|prefix| encoded.strip_prefix(*prefix))
        .unwrap_or(encoded);
    (digits.len() == 64 && digits.iter().all(u8::is_ascii_hexdigit)).then_some(digits)
}

/// How many bytes a text of at most 33 is in base64, of either alphabet. Without padding only what has a key's
/// length: words are base64, too.
fn from_base64(encoded: &[u8], buffer: &mut [u8; 33]) -> Option<usize> {
    let decoded = Base64::decode(encoded, buffer).map(<[u8]>::len);
    let decoded = decoded.or_else(|_| Base64Url::decode(encoded, buffer).map(<[u8]>::len));
    match decoded {
        Err(_) if encoded.len() == UNPADDED => Base64Unpadded::decode(encoded, buffer)
            .map(<[u8]>::len)
            .or_else(|_| Base64UrlUnpadded::decode(encoded, buffer).map(<[u8]>::len))
            .ok(),
        decoded => decoded.ok(),
    }
}

/// Characters of 32 bytes in base64 without padding.
const UNPADDED: usize = 43;

/// Whether letters that lack the padding, or have the hyphens of the other alphabet, are of one case: a random key
/// is not in one of 10^9 cases.
fn may_be_a_passphrase(encoded: &[u8]) -> bool {
    let is_plain =
        encoded.len() != UNPADDED && !encoded.iter().any(|byte| matches!(byte, b'-' | b'_'));
    let has_both_cases =
        encoded.iter().any(u8::is_ascii_lowercase) && encoded.iter().any(u8::is_ascii_uppercase);
    !(is_plain || has_both_cases)
}

fn looks_like(encoded: &[u8]) -> Seen {
    match encoded {
        [b'-', b'-', b'-', ..] => Seen::Pem,
        [b'{' | b'[', ..] => Seen::Json,
        _ if encoded.len() > 1
            && encoded.iter().filter(|byte| **byte == 0).count() >= encoded.len() / 2 =>
        {
            Seen::Utf16
        }
        _ if encoded.iter().any(|byte| !byte.is_ascii_graphic() && !byte.is_ascii_whitespace()) => {
            Seen::Bytes
        }
        _ if encoded.iter().any(u8::is_ascii_whitespace) => Seen::Words,
        _ => Seen::Characters(encoded.len()),
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
