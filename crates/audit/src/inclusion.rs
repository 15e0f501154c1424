//! The proof that a row is in the log, as a document that an outsider checks.

use base64ct::{Base64, Encoding};
use fieldcrypt_envelope::to_ascii;
use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::note::{Malformed, NotSigned, Note, VerifyingKey};
use crate::proof::verify_inclusion;
use crate::row::{LogRow, leaf_hash};
use crate::tree::Hash;

const FORMAT: &str = "pg_fieldcrypt audit proof v1";

/// A row, the path from its leaf to the root, and the checkpoint that states the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InclusionProof {
    format: String,
    row: LogRow,
    path: Vec<String>,
    checkpoint: String,
    /// The key that signed it, as a hint: who checks compares it with what he knows.
    public_key: String,
}

/// Why a proof does not prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotProven {
    /// The checkpoint is not signed by the key.
    NotSigned(NotSigned),
    /// The row, its number or the path is not what the checkpoint was signed over.
    NotIncluded,
}

impl InclusionProof {
    /// Of a row, by [`crate::inclusion_proof`].
    pub fn new(row: &LogRow, path: &[Hash], checkpoint: &str, public_key: &str) -> Self {
        Self {
            format: FORMAT.into(),
            row: row.clone(),
            path: path.iter().map(|hash| Base64::encode_string(hash)).collect(),
            checkpoint: checkpoint.into(),
            public_key: public_key.into(),
        }
    }

    /// The document: JSON, in ASCII.
    pub fn to_json(&self) -> String {
        to_ascii(&serde_json::to_string_pretty(self).unwrap_or_default())
    }

    /// Reads a document.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let read: Self = serde_json::from_str(text).map_err(|_| Malformed)?;
        let is_ours = read.format == FORMAT && read.hashes().is_some();
        if is_ours && read.stated().is_ok() { Ok(read) } else { Err(Malformed) }
    }

    /// The row.
    pub fn row(&self) -> &LogRow {
        &self.row
    }

    /// The checkpoint and its note.
    pub fn stated(&self) -> Result<(Checkpoint, Note), Malformed> {
        let note = Note::parse(&self.checkpoint)?;
        Ok((Checkpoint::parse(note.text())?, note))
    }

    /// The key that it says signed the checkpoint.
    pub fn public_key(&self) -> Result<VerifyingKey, Malformed> {
        VerifyingKey::parse(&self.public_key)
    }

    fn hashes(&self) -> Option<Vec<Hash>> {
        self.path.iter().map(|text| Base64::decode_vec(text).ok()?.try_into().ok()).collect()
    }

    /// Whether the row is in the log of whoever holds the key.
    pub fn verify(&self, key: &VerifyingKey) -> Result<(), NotProven> {
        let (checkpoint, note) = self.stated().map_err(|_| NotProven::NotIncluded)?;
        if key.name() != checkpoint.origin {
            return Err(NotProven::NotSigned(NotSigned::ByThisKey));
        }
        note.verify(key).map_err(NotProven::NotSigned)?;
        let path = self.hashes().ok_or(NotProven::NotIncluded)?;
        let mut encoded = Vec::new();
        self.row.encode(&mut encoded);
        let mac = self.row.mac().map_err(|_| NotProven::NotIncluded)?;
        let leaf = leaf_hash(&encoded, mac);
        let index = self.row.leaf.and_then(|leaf| u64::try_from(leaf).ok());
        let is_included = index.is_some_and(|index| {
            verify_inclusion(&leaf, index, checkpoint.size, &checkpoint.root, &path)
        });
        if is_included { Ok(()) } else { Err(NotProven::NotIncluded) }
    }
}
