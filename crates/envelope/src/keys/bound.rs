//! The keys of bound and loose values. They know what they are for, so that no value is opened with, and none is
//! sealed under, a key that such a value is never under.

use zeroize::ZeroizeOnDrop;

use super::{DataKey, KeyId, MessageKey, Purpose, SuiteKey, WrongKey};
use crate::ciphertext::{SUITE_BOUND, SUITE_SEARCHABLE};
use crate::nonce::Nonce;

/// The kinds of values that a header of suite 0x02 or 0x03 announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Not in its row yet: suite 0x02, under the database's key of purpose `loose`.
    Loose,
    /// Suite 0x02, under a tenant's key.
    Bound,
    /// Suite 0x03, under a tenant's key.
    Searchable,
}

impl Kind {
    /// The suite byte.
    pub fn suite(self) -> u8 {
        match self {
            Self::Loose | Self::Bound => SUITE_BOUND,
            Self::Searchable => SUITE_SEARCHABLE,
        }
    }

    /// What the data key must be for.
    pub fn purpose(self) -> Purpose {
        match self {
            Self::Loose => Purpose::Loose,
            Self::Bound | Self::Searchable => Purpose::Field,
        }
    }
}

impl DataKey {
    /// The XAES-256-GCM key of the values of this kind: `HKDF(DEK, "suite" ‖ suite byte ‖ key id)`, 32 bytes.
    pub fn bound_key(&self, key_id: KeyId, kind: Kind) -> Result<BoundKey, WrongKey> {
        if self.purpose != Some(kind.purpose()) {
            return Err(WrongKey);
        }
        Ok(BoundKey { kind, key_id, key: self.key_of_suite(kind.suite(), key_id) })
    }
}

/// The key of one kind of values of a data key; what a key cache holds.
#[derive(ZeroizeOnDrop)]
pub struct BoundKey {
    #[zeroize(skip)]
    kind: Kind,
    #[zeroize(skip)]
    key_id: KeyId,
    key: SuiteKey,
}

impl BoundKey {
    /// The key for the nonces with this one's first 12 bytes, for values of this kind and key id: worth keeping while
    /// nonces share them.
    pub fn message_key(
        &self,
        kind: Kind,
        key_id: KeyId,
        nonce: &Nonce,
    ) -> Result<BoundMessageKey, WrongKey> {
        if (self.kind, self.key_id) != (kind, key_id) {
            return Err(WrongKey);
        }
        let key = self.key.message_key(nonce);
        Ok(BoundMessageKey { kind, key_id, prefix: *nonce.prefix(), key })
    }
}

/// An AES-256-GCM key, scheduled, of one kind of values, data key and nonce prefix.
#[derive(ZeroizeOnDrop)]
pub struct BoundMessageKey {
    #[zeroize(skip)]
    kind: Kind,
    #[zeroize(skip)]
    key_id: KeyId,
    #[zeroize(skip)]
    prefix: [u8; 12],
    key: MessageKey,
}

impl BoundMessageKey {
    /// The key itself, for who names what it is for.
    pub(crate) fn of(
        &self,
        kind: Kind,
        key_id: KeyId,
        nonce: &Nonce,
    ) -> Result<&MessageKey, WrongKey> {
        let is_it = (self.kind, self.key_id, &self.prefix) == (kind, key_id, nonce.prefix());
        if is_it { Ok(&self.key) } else { Err(WrongKey) }
    }

    /// The data key's id.
    pub fn key_id(&self) -> KeyId {
        self.key_id
    }
}
