//! The format of an encrypted value of suite 0x01. This file and [`bound`](crate::bound), which has suites 0x02 and
//! 0x03, alone know byte offsets. The first 10 bytes are the same in all suites.
//!
//! ```text
//! 0    1   format   0xF9   (a byte that never occurs in UTF-8)
//! 1    1   suite    0x01 = XAES-256-GCM (C2SP)
//! 2    8   key id   big-endian, positive
//! 10   16  nonce    see the module `nonce`
//! 26   n   ciphertext
//! 26+n 16  tag
//! ```
//!
//! The text form is `fc1:` and the base64url (RFC 4648 section 5, no padding) of these bytes.

use base64ct::{Base64UrlUnpadded, Encoding};

use crate::context::Context;
use crate::keys::{KeyId, MessageKey, NotAuthentic};
use crate::nonce::Nonce;

/// First byte of every value.
pub const FORMAT: u8 = 0xF9;
/// Suite byte of XAES-256-GCM.
pub const SUITE_XAES_256_GCM: u8 = 0x01;
/// Suite byte of a bound or loose value: the same cipher, another header.
pub const SUITE_BOUND: u8 = 0x02;
/// Suite byte of a bound value with a search tag.
pub const SUITE_SEARCHABLE: u8 = 0x03;
/// A value is this much longer than its plaintext.
pub const OVERHEAD: usize = PLAINTEXT_OFFSET + TAG_LENGTH;
/// Where the plaintext is put before [`seal_in_place`].
pub const PLAINTEXT_OFFSET: usize = NONCE_OFFSET + Nonce::LENGTH;
/// Start of the text form.
pub const TEXT_PREFIX: &str = "fc1:";

/// Bytes that say which suite and key sealed a value: [`key_id_in_header`] needs no more of it.
pub const HEADER_LENGTH: usize = 10;
const NONCE_OFFSET: usize = HEADER_LENGTH;
const TAG_LENGTH: usize = 16;

/// Bytes that have the form of an encrypted value. Whether they are authentic, only [`open`] tells.
///
/// [`open`]: Ciphertext::open
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ciphertext<'a> {
    header: &'a [u8; HEADER_LENGTH],
    nonce: Nonce,
    body: &'a [u8],
    tag: &'a [u8; TAG_LENGTH],
    key_id: KeyId,
}

/// Why bytes or a text are not an encrypted value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// Shorter than the bytes that an empty plaintext takes: 42, 59 or 91, by suite.
    TooShort,
    /// The first byte is not [`FORMAT`].
    Format,
    /// A suite that this version doesn't know.
    Suite(u8),
    /// The key id, or that of the search key, is zero or negative.
    KeyId,
    /// A plaintext form that this version doesn't know, or 0, which is none.
    Form(u8),
    /// A loose value with a search tag, which there is not.
    LooseTag,
    /// A search tag over a form that is not searchable.
    TagOfForm(u8),
    /// The text does not start with `fc1:`.
    TextPrefix,
    /// What follows `fc1:` is not base64url without padding.
    Base64,
}

impl<'a> Ciphertext<'a> {
    /// Parses the binary form.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        match bytes.first() {
            Some(&FORMAT) => {}
            Some(_) => return Err(Malformed::Format),
            None => return Err(Malformed::TooShort),
        }
        let (header, rest) =
            bytes.split_first_chunk::<HEADER_LENGTH>().ok_or(Malformed::TooShort)?;
        let (nonce, rest) = rest.split_first_chunk().ok_or(Malformed::TooShort)?;
        let (body, tag) = rest.split_last_chunk().ok_or(Malformed::TooShort)?;
        let key_id = key_id_in_header(header)?;
        Ok(Self { header, nonce: Nonce::from_bytes(*nonce), body, tag, key_id })
    }

    /// The key that sealed it, by its own word.
    pub fn key_id(&self) -> KeyId {
        self.key_id
    }

    /// The nonce.
    pub fn nonce(&self) -> &Nonce {
        &self.nonce
    }

    /// Bytes of plaintext in it.
    pub fn plaintext_length(&self) -> usize {
        self.body.len()
    }

    /// The encrypted bytes between nonce and tag.
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// Decrypts in place: `buffer` holds a copy of [`body`](Self::body), and the plaintext afterwards.
    /// It holds no plaintext unless the value is authentic.
    pub fn open_in_place(
        &self,
        key: &MessageKey,
        context: &Context<'_>,
        buffer: &mut [u8],
    ) -> Result<(), NotAuthentic> {
        context.associated_data(self.header, |aad| key.open(&self.nonce, aad, buffer, self.tag))
    }

    /// Decrypts into a new buffer.
    pub fn open(&self, key: &MessageKey, context: &Context<'_>) -> Result<Vec<u8>, NotAuthentic> {
        let mut out = self.body.to_vec();
        self.open_in_place(key, context, &mut out).map(|()| out)
    }
}

/// The key that sealed a value, by its own word, from its first [`HEADER_LENGTH`] bytes: for who looks
/// at many values and needs few of them whole.
#[inline]
pub fn key_id_in_header(header: &[u8; HEADER_LENGTH]) -> Result<KeyId, Malformed> {
    match suite_and_key_id(header)? {
        (SUITE_XAES_256_GCM, key_id) => Ok(key_id),
        (suite, _) => Err(Malformed::Suite(suite)),
    }
}

/// The same of a value of any suite that this version knows, and which suite it is.
#[inline]
pub fn suite_and_key_id(header: &[u8; HEADER_LENGTH]) -> Result<(u8, KeyId), Malformed> {
    let [format, suite, key_id @ ..] = *header;
    if format != FORMAT {
        return Err(Malformed::Format);
    }
    if !matches!(suite, SUITE_XAES_256_GCM | SUITE_BOUND | SUITE_SEARCHABLE) {
        return Err(Malformed::Suite(suite));
    }
    let key_id = KeyId::new(i64::from_be_bytes(key_id)).ok_or(Malformed::KeyId)?;
    Ok((suite, key_id))
}

/// Seals a value in place: `buffer` holds the plaintext at [`PLAINTEXT_OFFSET`] with
/// [`OVERHEAD`] bytes around it, and holds the value afterwards.
///
/// The nonce must come from the [`NonceBlock`](crate::NonceBlock) of the key, and `key` must be the
/// suite key's message key for it. `Err` only if the buffer is too short or beyond GCM's limit; the
/// plaintext is still in it then.
pub fn seal_in_place(
    key: &MessageKey,
    key_id: KeyId,
    nonce: &Nonce,
    context: &Context<'_>,
    buffer: &mut [u8],
) -> Result<(), SealError> {
    let (header, rest) = buffer.split_first_chunk_mut().ok_or(SealError)?;
    let (stored_nonce, rest) = rest.split_first_chunk_mut().ok_or(SealError)?;
    let (body, tag) = rest.split_last_chunk_mut().ok_or(SealError)?;
    *header = header_of(SUITE_XAES_256_GCM, key_id);
    *stored_nonce = *nonce.as_bytes();
    *tag = context.associated_data(header, |aad| key.seal(nonce, aad, body)).ok_or(SealError)?;
    Ok(())
}

/// A buffer that can't be sealed: shorter than [`OVERHEAD`], or longer than GCM allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealError;

pub(crate) fn header_of(suite: u8, key_id: KeyId) -> [u8; HEADER_LENGTH] {
    let mut header = [FORMAT, suite, 0, 0, 0, 0, 0, 0, 0, 0];
    header[2..].copy_from_slice(&key_id.to_be_bytes());
    header
}

/// The text form of a value's bytes.
pub fn to_text(bytes: &[u8]) -> String {
    let mut out = vec![0; text_length(bytes)];
    write_text(bytes, &mut out);
    String::from_utf8(out).unwrap_or_default()
}

/// How long the text form of a value's bytes is.
pub fn text_length(bytes: &[u8]) -> usize {
    TEXT_PREFIX.len() + Base64UrlUnpadded::encoded_len(bytes)
}

/// Writes the text form into `out`, of [`text_length`] bytes: for a caller with memory of its own.
pub fn write_text(bytes: &[u8], out: &mut [u8]) {
    let (prefix, encoded) = out.split_at_mut(TEXT_PREFIX.len());
    prefix.copy_from_slice(TEXT_PREFIX.as_bytes());
    let written = Base64UrlUnpadded::encode(bytes, encoded);
    debug_assert!(written.is_ok(), "out has the length of the text form");
}

/// Parses the text form; what comes back has been through [`Ciphertext::parse`].
pub fn from_text(text: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut bytes = vec![0; length_from_text(text)?];
    parse_text(text, &mut bytes)?;
    Ok(bytes)
}

/// How many bytes a text form holds, if it is one.
pub fn length_from_text(text: &[u8]) -> Result<usize, Malformed> {
    let encoded = encoded_part(text)?;
    Ok(encoded.len() / 4 * 3 + encoded.len() % 4 * 3 / 4)
}

/// Parses the text form into `out`, of [`length_from_text`] bytes: for a caller with memory of its own.
pub fn parse_text(text: &[u8], out: &mut [u8]) -> Result<(), Malformed> {
    Ciphertext::parse(decode_text(text, out)?).map(|_| ())
}

/// The bytes of a text form, which need not be those of a value.
pub(crate) fn decode_text<'o>(text: &[u8], out: &'o mut [u8]) -> Result<&'o [u8], Malformed> {
    Base64UrlUnpadded::decode(encoded_part(text)?, out).map_err(|_| Malformed::Base64)
}

fn encoded_part(text: &[u8]) -> Result<&[u8], Malformed> {
    text.strip_prefix(TEXT_PREFIX.as_bytes()).ok_or(Malformed::TextPrefix)
}
