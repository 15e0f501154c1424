//! The keys of search tags.

use zeroize::ZeroizeOnDrop;

use super::{DataKey, KeyId, Purpose, WrongKey};
use crate::forms::NotOfForm;
use crate::primitives::{HmacSha256, hkdf};
use crate::search::{Domain, SearchTag};

impl DataKey {
    /// The key of the tags of a domain: `HKDF(DEK, "search" ‖ key id ‖ domain id)`, 32 bytes, for a data key of purpose
    /// `search`.
    pub fn tag_key(&self, key_id: KeyId, domain: Domain) -> Result<TagKey, WrongKey> {
        if self.purpose != Some(Purpose::Search) {
            return Err(WrongKey);
        }
        let info: &[&[u8]] = &[b"search", &key_id.to_be_bytes(), domain.id()];
        Ok(TagKey { key: *hkdf(&self.key, info), key_id, domain })
    }
}

/// The HMAC-SHA256 key of the tags of one domain under one search key.
#[derive(ZeroizeOnDrop)]
pub struct TagKey {
    key: [u8; 32],
    #[zeroize(skip)]
    key_id: KeyId,
    #[zeroize(skip)]
    domain: Domain,
}

impl TagKey {
    /// The tag of a plaintext of the domain's form: `HMAC-SHA256(key, form byte ‖ folded plaintext)[..16]` (FIPS 198-1,
    /// truncated as RFC 2104, section 5, allows).
    ///
    /// Equal plaintexts have equal tags, and that is all that a tag tells without the key. Who can have tags made can
    /// guess: of a social security number all that there are, in minutes.
    pub fn tag_of(&self, plaintext: &[u8]) -> Result<SearchTag, NotOfForm> {
        let form = self.domain.form();
        let folded = form.fold(plaintext)?;
        let mut mac = HmacSha256::new(&self.key);
        mac.update(&[form.number()]);
        mac.update(folded.as_bytes());
        let mut tag = [0; 16];
        tag.copy_from_slice(&mac.finish()[..16]);
        Ok(SearchTag { key_id: self.key_id, domain: *self.domain.id(), tag })
    }
}
