//! A key export and the master keys that open it.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use fieldcrypt_envelope::key_export::{Contents, KeyEntry, MAX_LENGTH, SealedExport};
use fieldcrypt_envelope::{AuditKey, DataKey, Fingerprint, KeyId, KeyState, MasterKey, Purpose};

use crate::failure::Failure;
use crate::master_key;

/// An authentic export, with the master keys that are there.
pub struct Keys {
    contents: Contents,
    vouching: Vec<Fingerprint>,
    by_id: HashMap<KeyId, usize>,
    master_keys: Vec<MasterKey>,
}

/// Why a key of the export does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyProblem {
    Unknown,
    Destroyed,
    NoMasterKey,
    UnknownAlgorithm,
    NotAuthentic,
}

impl Keys {
    /// Reads both. Refuses an export that was changed, or that none of the master keys can check.
    pub fn read(export: &Path, master_keys: &[PathBuf]) -> Result<Self, Failure> {
        let mut loaded: Vec<MasterKey> = Vec::new();
        for path in master_keys {
            loaded.extend(master_key::read(path)?);
        }
        let problem = |what: String| Failure::usage(format!("{}: {what}", export.display()));
        let mut sealed = SealedExport::parse(&text_of(export)?)
            .map_err(|error| problem(format!("no usable key export: {error}")))?;
        for key in &loaded {
            sealed.check(key).map_err(|_| {
                problem(format!(
                    "NOT AUTHENTIC: changed since it was made (by master key {})",
                    key.fingerprint().to_hex()
                ))
            })?;
        }
        let (contents, vouching) = sealed.open().map_err(|missing| {
            let needed: Vec<_> = missing.master_keys.iter().map(|one| one.to_hex()).collect();
            let there: Vec<_> = loaded.iter().map(|key| key.fingerprint().to_hex()).collect();
            problem(format!(
                "it belongs to master key {}; given: {}",
                needed.join(", "),
                there.join(", ")
            ))
        })?;
        let by_id =
            contents.keys().iter().enumerate().map(|(index, key)| (key.key_id, index)).collect();
        Ok(Self { contents, vouching, by_id, master_keys: loaded })
    }

    /// What the export says.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// The master keys that found it authentic.
    pub fn vouching(&self) -> &[Fingerprint] {
        &self.vouching
    }

    /// Opens the key with this id, which must be for this purpose.
    pub fn open_by_id(&self, key_id: KeyId, purpose: Purpose) -> Result<DataKey, KeyProblem> {
        let index = *self.by_id.get(&key_id).ok_or(KeyProblem::Unknown)?;
        let key = &self.contents.keys()[index];
        if key.purpose != purpose.name() {
            return Err(KeyProblem::UnknownAlgorithm);
        }
        self.open(key)
    }

    /// Opens the key with this id, under which rows of the audit log are authenticated.
    pub fn audit_key(&self, key_id: KeyId) -> Option<AuditKey> {
        self.open_by_id(key_id, Purpose::Audit).ok().map(|key| key.audit_key(key_id))
    }

    /// Opens a key, and compares it with its check value.
    pub fn open(&self, key: &KeyEntry) -> Result<DataKey, KeyProblem> {
        let wrapped = match (&key.wrapped_key, key.state) {
            (Some(wrapped), _) => wrapped,
            (None, KeyState::Destroyed) => return Err(KeyProblem::Destroyed),
            (None, _) => return Err(KeyProblem::NotAuthentic),
        };
        let purpose = Purpose::parse(&key.purpose);
        if purpose.is_none_or(|purpose| purpose.algorithm() != key.algorithm) {
            return Err(KeyProblem::UnknownAlgorithm);
        }
        let master_key = self
            .master_keys
            .iter()
            .find(|one| one.fingerprint() == key.master_key)
            .ok_or(KeyProblem::NoMasterKey)?;
        let opened = master_key
            .unwrap_key(wrapped, &key.metadata(), &key.check)
            .map_err(|_| KeyProblem::NotAuthentic)?;
        if opened.check(key.key_id) == key.check {
            Ok(opened)
        } else {
            Err(KeyProblem::NotAuthentic)
        }
    }
}

fn text_of(path: &Path) -> Result<String, Failure> {
    let file = File::open(path).map_err(|error| Failure::file(path, error))?;
    let mut bytes = Vec::new();
    file.take(MAX_LENGTH as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::file(path, error))?;
    String::from_utf8(bytes)
        .map_err(|_| Failure::usage(format!("{}: not a text in UTF-8", path.display())))
}
