//! Search tags: whether two values are equal, without opening them.

use crate::ciphertext::Malformed;
use crate::forms::Form;
use crate::keys::KeyId;
use crate::primitives::sha256;

/// Columns whose values may be compared with each other, and the form that they have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Domain {
    id: [u8; 8],
    form: Form,
}

impl Domain {
    /// `SHA-256(name ‖ form byte)[..8]` (FIPS 180-4), where the byte has no high bit; `None` if values of that form have no
    /// tags. The id keeps domains apart that are named by their owners; it is no secret and withstands no forger.
    pub fn named(name: &str, form: Form) -> Option<Self> {
        let mut id = [0; 8];
        id.copy_from_slice(&sha256(&[name.as_bytes(), &[form.number()]])[..8]);
        Self::of(id, form)
    }

    /// The domain of this id, as a value's header has both.
    pub fn of(id: [u8; 8], form: Form) -> Option<Self> {
        form.is_searchable().then_some(Self { id, form })
    }

    /// Its id.
    pub fn id(&self) -> &[u8; 8] {
        &self.id
    }

    /// The form of its values.
    pub fn form(&self) -> Form {
        self.form
    }
}

/// What a searchable value carries: under which key and in which domain it is comparable, and the tag itself.
///
/// Two of these are equal if and only if their bytes are. The order is that of the bytes; it means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SearchTag {
    /// The data key of purpose `search`.
    pub key_id: KeyId,
    /// The id of the [`Domain`].
    pub domain: [u8; 8],
    /// `HMAC-SHA256(…)[..16]`: see [`TagKey::tag_of`](crate::keys::TagKey::tag_of).
    pub tag: [u8; 16],
}

impl SearchTag {
    /// Bytes of it, in a header and by itself.
    pub const LENGTH: usize = 8 + 8 + 16;

    /// Parses its bytes: search key id, domain, tag.
    pub fn parse(bytes: &[u8; Self::LENGTH]) -> Result<Self, Malformed> {
        let (key_id, rest) = bytes.split_first_chunk().ok_or(Malformed::TooShort)?;
        let (domain, tag) = rest.split_first_chunk().ok_or(Malformed::TooShort)?;
        let key_id = KeyId::new(i64::from_be_bytes(*key_id)).ok_or(Malformed::KeyId)?;
        let tag = tag.try_into().map_err(|_| Malformed::TooShort)?;
        Ok(Self { key_id, domain: *domain, tag })
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> [u8; Self::LENGTH] {
        let mut out = [0; Self::LENGTH];
        out[..8].copy_from_slice(&self.key_id.to_be_bytes());
        out[8..16].copy_from_slice(&self.domain);
        out[16..].copy_from_slice(&self.tag);
        out
    }
}
