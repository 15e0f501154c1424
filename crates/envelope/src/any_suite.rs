//! Values of any suite, where all are taken.

use crate::bound::BoundCiphertext;
use crate::ciphertext::{Ciphertext, Malformed, SUITE_XAES_256_GCM, decode_text, length_from_text};
use crate::keys::KeyId;

/// Bytes that have the form of a value of a suite that this version knows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum AnyCiphertext<'a> {
    /// Suite 0x01: bound, if at all, to a context that who opens it knows.
    Field(Ciphertext<'a>),
    /// Suite 0x02 or 0x03.
    Bound(BoundCiphertext<'a>),
}

impl<'a> AnyCiphertext<'a> {
    /// Parses the binary form.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if bytes.get(1) == Some(&SUITE_XAES_256_GCM) {
            Ciphertext::parse(bytes).map(Self::Field)
        } else {
            BoundCiphertext::parse(bytes).map(Self::Bound)
        }
    }

    /// The key that sealed it, by its own word.
    pub fn key_id(&self) -> KeyId {
        match self {
            Self::Field(value) => value.key_id(),
            Self::Bound(value) => value.header().key_id,
        }
    }

    /// The encrypted bytes, as many as the plaintext has.
    pub fn body(&self) -> &'a [u8] {
        match self {
            Self::Field(value) => value.body(),
            Self::Bound(value) => value.body(),
        }
    }
}

/// Parses the text form of a value of any suite into `out`, of [`length_from_text`] bytes.
pub fn parse_any_text<'o>(text: &[u8], out: &'o mut [u8]) -> Result<AnyCiphertext<'o>, Malformed> {
    AnyCiphertext::parse(decode_text(text, out)?)
}

/// The bytes of a text form; they have been through [`AnyCiphertext::parse`].
pub fn from_any_text(text: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut bytes = vec![0; length_from_text(text)?];
    parse_any_text(text, &mut bytes)?;
    Ok(bytes)
}
