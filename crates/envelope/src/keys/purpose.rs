//! What a data key is for.

/// The purposes of data keys: column `purpose` of `fieldcrypt.encryption_keys`, which a key's wrapping authenticates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Seals a tenant's values, of suite 0x01 and bound ones.
    Field,
    /// Seals loose values.
    Loose,
    /// Makes a tenant's search tags.
    Search,
    /// Authenticates rows of the audit log.
    Audit,
}

impl Purpose {
    const ALL: [Self; 4] = [Self::Field, Self::Loose, Self::Search, Self::Audit];

    /// As column `purpose` says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Field => "field",
            Self::Loose => "loose",
            Self::Search => "search",
            Self::Audit => "audit",
        }
    }

    /// As column `algorithm` says what keys of this purpose do.
    pub fn algorithm(self) -> &'static str {
        match self {
            Self::Field | Self::Loose => "XAES-256-GCM",
            Self::Search | Self::Audit => "HMAC-SHA256",
        }
    }

    /// The purpose of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|purpose| purpose.name() == name)
    }
}

/// A key that is not for this: its purpose is another one, or it is the key of another kind of values, of another id,
/// or of nonces with another beginning. Said before any cipher runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrongKey;
