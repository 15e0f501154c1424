//! Values that know their place: suite 0x02, bound or loose, and suite 0x03, bound with a search tag.
//!
//! ```text
//! 0    1   format 0xF9          26   1   form; high bit: loose (only ever suite 0x02)
//! 1    1   suite 0x02 | 0x03    27   16  place, or stamp if loose: see the module `binding`
//! 2    8   key id               -- suite 0x03 only:
//! 10   16  nonce                43   8   search key id     51  8  domain     59  16  search tag
//!                               then ciphertext, tag 16
//! ```
//!
//! Cipher, nonces and text form are those of suite 0x01 (the module `ciphertext`), the key is another one for each suite.
//! Associated data: all bytes before the ciphertext. So nothing but the key is needed to open a value; whether it is
//! where it belongs is compared, with its header alone if need be.

use zeroize::Zeroize;

use crate::binding::{Expected, Place, Stamp};
use crate::ciphertext::{
    FORMAT, HEADER_LENGTH, Malformed, SUITE_SEARCHABLE, SUITE_XAES_256_GCM, header_of,
    suite_and_key_id,
};
use crate::forms::Form;
use crate::keys::{BoundMessageKey, KeyId, Kind, NotAuthentic, WrongKey};
use crate::nonce::Nonce;
use crate::search::{Domain, SearchTag};

/// The high bit of the form byte.
const LOOSE: u8 = 0x80;
const FORM_OFFSET: usize = HEADER_LENGTH + Nonce::LENGTH;
const PLACE_OFFSET: usize = FORM_OFFSET + 1;
const BOUND_LENGTH: usize = PLACE_OFFSET + Place::LENGTH;
const TAG_LENGTH: usize = 16;

/// What a value says of itself. Whether it is true, only opening it tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The key that sealed it.
    pub key_id: KeyId,
    /// The nonce.
    pub nonce: Nonce,
    /// The form of its plaintext.
    pub form: Form,
    /// Where it belongs.
    pub binding: Binding,
}

/// Where a value belongs, and by what it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// Not in its row yet.
    Loose(Stamp),
    /// To a place.
    Bound(Place),
    /// To a place, and comparable with others. The form is a searchable one.
    Searchable(Place, SearchTag),
}

impl Header {
    /// Bytes of the longest header: no more of a value is needed to read it.
    pub const MAX_LENGTH: usize = BOUND_LENGTH + SearchTag::LENGTH;

    /// Reads the header from the first bytes of a value, [`MAX_LENGTH`](Self::MAX_LENGTH) of them or more if it has so
    /// many. What follows the header is not looked at.
    pub fn parse(start: &[u8]) -> Result<Self, Malformed> {
        match start.first() {
            Some(&FORMAT) => {}
            Some(_) => return Err(Malformed::Format),
            None => return Err(Malformed::TooShort),
        }
        let (header, rest) = start.split_first_chunk().ok_or(Malformed::TooShort)?;
        let (suite, key_id) = suite_and_key_id(header)?;
        if suite == SUITE_XAES_256_GCM {
            return Err(Malformed::Suite(suite));
        }
        let (nonce, rest) = rest.split_first_chunk().ok_or(Malformed::TooShort)?;
        let (&[form_byte], rest) = rest.split_first_chunk().ok_or(Malformed::TooShort)?;
        let (place, rest) = rest.split_first_chunk().ok_or(Malformed::TooShort)?;
        let (is_loose, number) = (form_byte & LOOSE != 0, form_byte & !LOOSE);
        let form = Form::of_number(number).ok_or(Malformed::Form(number))?;
        let binding = match (suite == SUITE_SEARCHABLE, is_loose) {
            (false, true) => Binding::Loose(Stamp::from_bytes(place)),
            (false, false) => Binding::Bound(Place::from_bytes(place)),
            (true, true) => return Err(Malformed::LooseTag),
            (true, false) if !form.is_searchable() => return Err(Malformed::TagOfForm(number)),
            (true, false) => {
                let tag = rest.first_chunk().ok_or(Malformed::TooShort)?;
                Binding::Searchable(Place::from_bytes(place), SearchTag::parse(tag)?)
            }
        };
        Ok(Self { key_id, nonce: Nonce::from_bytes(*nonce), form, binding })
    }

    /// Which kind of value it is: what its key must be for.
    pub fn kind(&self) -> Kind {
        match self.binding {
            Binding::Loose(_) => Kind::Loose,
            Binding::Bound(_) => Kind::Bound,
            Binding::Searchable(..) => Kind::Searchable,
        }
    }

    /// Bytes of it: where the ciphertext begins, and the plaintext before [`seal_in_place`].
    pub fn length(&self) -> usize {
        header_length(self.kind())
    }

    /// By what it is found.
    pub fn search_tag(&self) -> Option<&SearchTag> {
        match &self.binding {
            Binding::Searchable(_, tag) => Some(tag),
            Binding::Loose(_) | Binding::Bound(_) => None,
        }
    }

    /// The domain of its search tag.
    pub fn domain(&self) -> Option<Domain> {
        self.search_tag().and_then(|tag| Domain::of(tag.domain, self.form))
    }

    /// Whether it says that it belongs there: all that can be known without a key.
    pub fn is_expected(&self, expected: Expected<'_>) -> bool {
        match (expected, &self.binding) {
            (Expected::Any, _) => true,
            (Expected::Place(context), Binding::Bound(place) | Binding::Searchable(place, _)) => {
                place.is_of(context)
            }
            (Expected::Session(session), Binding::Loose(stamp)) => session.sealed(stamp),
            (Expected::Place(_), Binding::Loose(_))
            | (Expected::Session(_), Binding::Bound(_) | Binding::Searchable(..)) => false,
        }
    }

    /// The header of the same value under another key: place with its salt, form and search tag stay.
    pub fn under(&self, key_id: KeyId, nonce: Nonce) -> Self {
        Self { key_id, nonce, ..*self }
    }

    /// Writes it into a buffer, which is split there; `None` if that is too short.
    fn write<'b>(&self, buffer: &'b mut [u8]) -> Option<(&'b [u8], &'b mut [u8])> {
        let (out, rest) = buffer.split_at_mut_checked(self.length())?;
        out[..HEADER_LENGTH].copy_from_slice(&header_of(self.kind().suite(), self.key_id));
        out[HEADER_LENGTH..FORM_OFFSET].copy_from_slice(self.nonce.as_bytes());
        out[FORM_OFFSET] = self.form.number();
        let place = match &self.binding {
            Binding::Loose(stamp) => {
                out[FORM_OFFSET] |= LOOSE;
                stamp.to_bytes()
            }
            Binding::Bound(place) | Binding::Searchable(place, _) => place.to_bytes(),
        };
        out[PLACE_OFFSET..BOUND_LENGTH].copy_from_slice(&place);
        if let Some(tag) = self.search_tag() {
            out[BOUND_LENGTH..].copy_from_slice(&tag.to_bytes());
        }
        Some((out, rest))
    }
}

/// Bytes before the ciphertext of a value of this kind.
pub const fn header_length(kind: Kind) -> usize {
    match kind {
        Kind::Loose | Kind::Bound => BOUND_LENGTH,
        Kind::Searchable => Header::MAX_LENGTH,
    }
}

/// A value of this kind is this much longer than its plaintext: 59 or 91 bytes.
pub const fn overhead(kind: Kind) -> usize {
    header_length(kind) + TAG_LENGTH
}

/// Bytes that have the form of a value of suite 0x02 or 0x03.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BoundCiphertext<'a> {
    header: Header,
    header_bytes: &'a [u8],
    body: &'a [u8],
    tag: &'a [u8; TAG_LENGTH],
}

impl<'a> BoundCiphertext<'a> {
    /// Parses the binary form.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header = Header::parse(bytes)?;
        let (header_bytes, rest) =
            bytes.split_at_checked(header.length()).ok_or(Malformed::TooShort)?;
        let (body, tag) = rest.split_last_chunk().ok_or(Malformed::TooShort)?;
        Ok(Self { header, header_bytes, body, tag })
    }

    /// What it says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The encrypted bytes, as many as the plaintext has.
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// Decrypts in place: `buffer` holds a copy of [`body`](Self::body), and the plaintext afterwards. It holds none
    /// unless the key is the value's, the value belongs where it is expected, and is authentic: asked in this order.
    ///
    /// The plaintext is bytes; [`Form::decode`] reads them.
    pub fn open_in_place(
        &self,
        key: &BoundMessageKey,
        expected: Expected<'_>,
        buffer: &mut [u8],
    ) -> Result<(), OpenError> {
        let header = &self.header;
        let key = key.of(header.kind(), header.key_id, &header.nonce)?;
        if !header.is_expected(expected) {
            return Err(OpenError::Misplaced);
        }
        Ok(key.open(&header.nonce, self.header_bytes, buffer, self.tag)?)
    }

    /// Writes the same plaintext under another key into `out`, which is as long as the value, wherever it belongs. Place
    /// with its salt, form and search tag stay. The new key is of the same kind; the nonce is from its block.
    ///
    /// What is in `out` after an error is no plaintext.
    pub fn reencrypt_into(
        &self,
        key: &BoundMessageKey,
        new_key: &BoundMessageKey,
        nonce: Nonce,
        out: &mut [u8],
    ) -> Result<(), OpenError> {
        let header = self.header.under(new_key.key_id(), nonce);
        new_key.of(header.kind(), header.key_id, &header.nonce)?;
        let (_, buffer) = out.split_at_mut_checked(header.length()).ok_or(NotAuthentic)?;
        let (buffer, _) = buffer.split_last_chunk_mut::<TAG_LENGTH>().ok_or(NotAuthentic)?;
        if buffer.len() != self.body.len() {
            return Err(OpenError::NotAuthentic);
        }
        buffer.copy_from_slice(self.body);
        self.open_in_place(key, Expected::Any, buffer)?;
        seal_in_place(new_key, &header, out).map_err(|_| {
            out.zeroize();
            OpenError::NotAuthentic
        })
    }
}

/// Seals a value in place: `buffer` holds the plaintext after [`Header::length`] bytes and [`overhead`] bytes around it
/// in all, and holds the value afterwards.
///
/// The nonce must come from the [`NonceBlock`](crate::NonceBlock) of the key.
pub fn seal_in_place(
    key: &BoundMessageKey,
    header: &Header,
    buffer: &mut [u8],
) -> Result<(), SealError> {
    let key = key.of(header.kind(), header.key_id, &header.nonce)?;
    if header.search_tag().is_some() && !header.form.is_searchable() {
        return Err(SealError::Form);
    }
    if buffer.len() < overhead(header.kind()) {
        return Err(SealError::Length);
    }
    let (header_bytes, rest) = header.write(buffer).ok_or(SealError::Length)?;
    let (body, tag) = rest.split_last_chunk_mut().ok_or(SealError::Length)?;
    *tag = key.seal(&header.nonce, header_bytes, body).ok_or(SealError::Length)?;
    Ok(())
}

/// Why a value did not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenError {
    /// The key is not for it. No cipher ran.
    WrongKey,
    /// It says that it belongs elsewhere: to another row, to another session, or, loose, to no row yet. No cipher ran.
    Misplaced,
    /// It was tampered with.
    NotAuthentic,
}

/// Why a value was not sealed. The plaintext is still in the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealError {
    /// The key is not for it: the value would never open.
    WrongKey,
    /// A search tag for a form that is not searchable.
    Form,
    /// The buffer is too short, or beyond GCM's limit.
    Length,
}

impl From<WrongKey> for OpenError {
    fn from(_: WrongKey) -> Self {
        Self::WrongKey
    }
}

impl From<NotAuthentic> for OpenError {
    fn from(_: NotAuthentic) -> Self {
        Self::NotAuthentic
    }
}

impl From<WrongKey> for SealError {
    fn from(_: WrongKey) -> Self {
        Self::WrongKey
    }
}
