//! An export of the key table: one JSON document, useless without the master keys, and authenticated
//! by each master key that wraps one of its keys.
//!
//! The authentication is `HMAC-SHA256(export key, message)`, where the message is the canonical form
//! of what the document says, never its text: white space and the order of an object's fields are
//! free. No version knows other fields than these; new ones are a new version. Version 1 knows keys of the purposes `field` and
//! `audit`; what has others is of version 2, which readers of version 1 refuse.

mod document;

use std::collections::HashSet;
use std::fmt;

use crate::context::canonical_parts;
use crate::keys::{
    Fingerprint, KeyId, KeyMetadata, KeyState, MasterKey, NotAuthentic, Purpose, WrappedKey,
};
use crate::primitives::HmacSha256;

/// Field `format` of every export.
pub const FORMAT: &str = "pg_fieldcrypt key export";
/// Bytes of a document that are read: what Postgres takes for one value.
pub const MAX_LENGTH: usize = 1 << 30;
/// UTF-8 bytes of a tenant: the 1024 that the table takes in any database's encoding.
pub const MAX_TENANT_BYTES: usize = 4096;

const DOMAIN: &[u8] = b"pg_fieldcrypt/v1 key export";

/// What an export says, well-formed. Not authentic by that: see [`SealedExport`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    created_at: Timestamp,
    states_confirmed: bool,
    database: Database,
    master_keys: Vec<MasterKeyEntry>,
    keys: Vec<KeyEntry>,
}

/// Where an export was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// The cluster's system identifier.
    pub system_identifier: u64,
    /// The database's name.
    pub name: String,
}

/// A row of `fieldcrypt.master_keys`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasterKeyEntry {
    /// Its public name.
    pub fingerprint: Fingerprint,
    /// Whether it wraps new keys.
    pub is_current: bool,
    /// When it first wrapped a key.
    pub first_used_at: Timestamp,
}

/// A row of `fieldcrypt.encryption_keys`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyEntry {
    /// Column `key_id`.
    pub key_id: KeyId,
    /// Column `tenant`.
    pub tenant: String,
    /// Column `purpose`.
    pub purpose: String,
    /// Column `version`.
    pub version: u32,
    /// Column `state`.
    pub state: KeyState,
    /// Column `algorithm`.
    pub algorithm: String,
    /// Column `wrapped_key`: `None` if and only if the key is destroyed.
    pub wrapped_key: Option<WrappedKey>,
    /// Column `master_key_fingerprint`.
    pub master_key: Fingerprint,
    /// Column `key_check`.
    pub check: [u8; 16],
    /// Column `created_at`.
    pub created_at: Timestamp,
    /// Column `deactivated_at`.
    pub deactivated_at: Option<Timestamp>,
    /// Column `destroyed_at`.
    pub destroyed_at: Option<Timestamp>,
    /// Column `suspended_from`.
    pub suspended_from: Option<KeyState>,
    /// Column `destroy_scheduled_at`.
    pub destroy_scheduled_at: Option<Timestamp>,
    /// Column `destroy_after`.
    pub destroy_after: Option<Timestamp>,
}

impl Contents {
    /// Field `version`: the lowest that has the purposes of all keys.
    pub fn version(&self) -> u64 {
        let is_of_first = |key: &KeyEntry| {
            [Purpose::Field, Purpose::Audit].iter().any(|purpose| purpose.name() == key.purpose)
        };
        if self.keys.iter().all(is_of_first) { 1 } else { 2 }
    }
}

impl KeyEntry {
    /// What its wrapping authenticates.
    pub fn metadata(&self) -> KeyMetadata<'_> {
        KeyMetadata {
            tenant: &self.tenant,
            key_id: self.key_id,
            version: self.version,
            purpose: &self.purpose,
            algorithm: &self.algorithm,
        }
    }
}

/// A moment in UTC, always `2026-11-22T21:10:00.000000Z`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timestamp(String);

impl Timestamp {
    /// `None` unless it has the form; whether there is such a day is not asked.
    pub fn parse(text: &str) -> Option<Self> {
        const FORM: &[u8] = b"dddd-dd-ddTdd:dd:dd.ddddddZ";
        let fits = text.len() == FORM.len()
            && text.bytes().zip(FORM).all(|(byte, form)| match form {
                b'd' => byte.is_ascii_digit(),
                form => byte == *form,
            });
        fits.then(|| Self(text.to_owned()))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is no key export of this version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExportError {
    /// Longer than [`MAX_LENGTH`].
    TooLong,
    /// No JSON, or fields missing, unknown, repeated or of another type: where in the text.
    Json {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// Field `format` is not [`FORMAT`].
    Format,
    /// A version that this code doesn't know.
    Version(u64),
    /// A field of the document itself.
    Document(&'static str),
    /// A field of a key.
    Key {
        /// Which of the keys, from 1.
        position: usize,
        /// What is wrong.
        problem: &'static str,
    },
}

impl fmt::Display for ExportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => f.write_str("it is longer than 1 GB"),
            Self::Json { line, column } => {
                write!(f, "not the JSON of an export at line {line}, column {column}")
            }
            Self::Format => f.write_str("its field \"format\" is another's"),
            Self::Version(version) => write!(f, "version {version} is unknown to this program"),
            Self::Document(problem) => f.write_str(problem),
            Self::Key { position, problem } => write!(f, "key {position} of the list: {problem}"),
        }
    }
}

/// The authentication of an export by one master key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authentication {
    master_key: Fingerprint,
    code: [u8; 32],
}

impl Contents {
    /// Reads what is to be sealed: a document without its field `authentication`.
    pub fn parse(text: &str) -> Result<Self, ExportError> {
        let (contents, authentication) = document::read(text)?;
        match authentication {
            None => Ok(contents),
            Some(_) => Err(ExportError::Document("it is sealed already")),
        }
    }

    /// When the export was made.
    pub fn created_at(&self) -> &Timestamp {
        &self.created_at
    }

    /// Whether the key states counted as confirmed then: not after a restore that nobody looked at.
    pub fn states_confirmed(&self) -> bool {
        self.states_confirmed
    }

    /// Where it was made.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// The master keys, ascending.
    pub fn master_keys(&self) -> &[MasterKeyEntry] {
        &self.master_keys
    }

    /// The keys, by ascending id.
    pub fn keys(&self) -> &[KeyEntry] {
        &self.keys
    }

    /// The master keys that must authenticate it: who could replace one of its keys has one of them.
    pub fn authenticating_master_keys(&self) -> Vec<Fingerprint> {
        let current = self.master_keys.iter().filter(|one| one.is_current);
        let wrapping = self.keys.iter().filter(|key| key.wrapped_key.is_some());
        let mut all: Vec<_> = current
            .map(|one| one.fingerprint)
            .chain(wrapping.map(|key| key.master_key))
            .collect::<HashSet<_>>()
            .into_iter()
            .collect();
        all.sort_unstable();
        all
    }

    /// Authenticates it by one master key.
    pub fn authenticate(&self, master_key: &MasterKey) -> Authentication {
        Authentication {
            master_key: master_key.fingerprint(),
            code: self.message(master_key).finish(),
        }
    }

    /// The document, in ASCII, if all [`authenticating_master_keys`] have authenticated it.
    ///
    /// [`authenticating_master_keys`]: Self::authenticating_master_keys
    pub fn seal(&self, mut authentication: Vec<Authentication>) -> Option<String> {
        authentication.sort_unstable_by_key(|one| one.master_key);
        authentication.dedup();
        document::is_complete(self, &authentication).then(|| document::write(self, &authentication))
    }

    /// The same without authentication, as [`parse`](Self::parse) reads it, in ASCII.
    pub fn to_json(&self) -> String {
        document::write(self, &[])
    }

    /// The canonical form: the head with both counts, then a list for each master key and each key.
    /// A list says its own length, so no two contents share a form.
    fn message(&self, master_key: &MasterKey) -> HmacSha256 {
        let optional = |moment: &Option<Timestamp>| -> Vec<u8> {
            moment.as_ref().map(|moment| moment.0.clone().into_bytes()).unwrap_or_default()
        };
        let mut mac = HmacSha256::new(master_key.export_key());
        mac.update(&canonical_parts(&[
            DOMAIN,
            &self.version().to_be_bytes(),
            self.created_at.0.as_bytes(),
            &[u8::from(self.states_confirmed)],
            &self.database.system_identifier.to_be_bytes(),
            self.database.name.as_bytes(),
            &(self.master_keys.len() as u64).to_be_bytes(),
            &(self.keys.len() as u64).to_be_bytes(),
        ]));
        for one in &self.master_keys {
            mac.update(&canonical_parts(&[
                &one.fingerprint.0,
                &[u8::from(one.is_current)],
                one.first_used_at.0.as_bytes(),
            ]));
        }
        for key in &self.keys {
            mac.update(&canonical_parts(&[
                &key.key_id.to_be_bytes(),
                key.tenant.as_bytes(),
                key.purpose.as_bytes(),
                &key.version.to_be_bytes(),
                key.state.name().as_bytes(),
                key.algorithm.as_bytes(),
                key.wrapped_key.as_ref().map_or(&[], WrappedKey::as_slice),
                &key.master_key.0,
                &key.check,
                key.created_at.0.as_bytes(),
                &optional(&key.deactivated_at),
                &optional(&key.destroyed_at),
                key.suspended_from.map_or("", KeyState::name).as_bytes(),
                &optional(&key.destroy_scheduled_at),
                &optional(&key.destroy_after),
            ]));
        }
        mac
    }
}

/// A document that was read, and may have been made or changed by anybody until it is
/// [checked](Self::check).
pub struct SealedExport {
    contents: Contents,
    authentication: Vec<Authentication>,
    checked: Vec<Fingerprint>,
}

/// None of the master keys that authenticate an export was there to check it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotChecked {
    /// The master keys that could.
    pub master_keys: Vec<Fingerprint>,
}

impl SealedExport {
    /// Reads a document.
    pub fn parse(text: &str) -> Result<Self, ExportError> {
        let (contents, authentication) = document::read(text)?;
        let authentication =
            authentication.ok_or(ExportError::Document("it has no authentication"))?;
        if !document::is_complete(&contents, &authentication) {
            return Err(ExportError::Document(
                "a master key that wraps one of its keys does not authenticate it",
            ));
        }
        Ok(Self { contents, authentication, checked: Vec::new() })
    }

    /// The master keys that authenticate it, by its own word.
    pub fn master_keys(&self) -> Vec<Fingerprint> {
        self.authentication.iter().map(|one| one.master_key).collect()
    }

    /// Checks it by a master key. One that has no part in it checks nothing.
    pub fn check(&mut self, master_key: &MasterKey) -> Result<(), NotAuthentic> {
        let fingerprint = master_key.fingerprint();
        let Some(one) = self.authentication.iter().find(|one| one.master_key == fingerprint) else {
            return Ok(());
        };
        if !self.contents.message(master_key).is(&one.code) {
            self.checked.clear();
            return Err(NotAuthentic);
        }
        self.checked.push(fingerprint);
        Ok(())
    }

    /// What it says, and the master keys that vouch for it, if any does.
    pub fn open(self) -> Result<(Contents, Vec<Fingerprint>), NotChecked> {
        if self.checked.is_empty() {
            return Err(NotChecked { master_keys: self.master_keys() });
        }
        Ok((self.contents, self.checked))
    }
}
