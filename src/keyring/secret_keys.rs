//! What is kept of a data key: the keys of its suites.

use fieldcrypt_envelope::{BoundKey, DataKey, KeyId, Kind, Purpose, SuiteKey, WrongKey};

/// The keys of the suites that a data key has values of.
pub enum SecretKeys {
    /// Of a tenant's.
    Field {
        /// Of suite 0x01.
        plain: SuiteKey,
        /// Of bound values without a search tag.
        bound: BoundKey,
        /// Of those with one.
        searchable: BoundKey,
    },
    /// Of loose values.
    Loose(BoundKey),
}

impl SecretKeys {
    /// Those of a data key.
    pub fn derive(key: &DataKey, key_id: KeyId, purpose: Purpose) -> Result<Self, WrongKey> {
        Ok(match purpose {
            Purpose::Loose => Self::Loose(key.bound_key(key_id, Kind::Loose)?),
            _ => Self::Field {
                plain: key.suite_key(key_id),
                bound: key.bound_key(key_id, Kind::Bound)?,
                searchable: key.bound_key(key_id, Kind::Searchable)?,
            },
        })
    }

    /// That of suite 0x01.
    pub fn plain(&self) -> Option<&SuiteKey> {
        match self {
            Self::Field { plain, .. } => Some(plain),
            Self::Loose(_) => None,
        }
    }

    /// That of a kind of bound or loose values.
    pub fn of_kind(&self, kind: Kind) -> Option<&BoundKey> {
        match (self, kind) {
            (Self::Field { bound, .. }, Kind::Bound) => Some(bound),
            (Self::Field { searchable, .. }, Kind::Searchable) => Some(searchable),
            (Self::Loose(key), Kind::Loose) => Some(key),
            _ => None,
        }
    }
}
