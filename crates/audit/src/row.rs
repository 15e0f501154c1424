//! A row of the log, in its one canonical encoding, and the leaf that it becomes.

use fieldcrypt_envelope::sha256;
use serde::{Deserialize, Serialize};

use crate::form;
use crate::tree::Hash;

/// The first byte of an encoded row.
const VERSION_1: u8 = 0x01;
/// That of a row with a value in a column that version 1 did not have.
const VERSION_2: u8 = 0x02;

/// A row of `fieldcrypt.audit_log`, its texts in UTF-8. In JSON, as exports and proofs carry it, a
/// column that is left out is NULL.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogRow {
    /// Column `leaf`.
    #[serde(default, with = "form", skip_serializing_if = "Option::is_none")]
    pub leaf: Option<i64>,
    /// Column `id`.
    #[serde(with = "form")]
    pub id: i64,
    /// Column `at`, in microseconds since 1970-01-01 00:00 UTC.
    #[serde(with = "form::time")]
    pub at: i64,
    /// Column `event`.
    pub event: String,
    /// Column `actor`.
    pub actor: String,
    /// Column `role`.
    pub role: String,
    /// Column `client_address`, as the type `inet` is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_address: Option<String>,
    /// Column `application`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application: Option<String>,
    /// Column `backend_pid`.
    pub backend_pid: i32,
    /// Column `transaction_id`.
    #[serde(default, with = "form", skip_serializing_if = "Option::is_none")]
    pub transaction_id: Option<u64>,
    /// Column `tenant`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Column `key_id`.
    #[serde(default, with = "form", skip_serializing_if = "Option::is_none")]
    pub key_id: Option<i64>,
    /// Column `reason`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Column `table_name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table_name: Option<String>,
    /// Column `partition_name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition_name: Option<String>,
    /// Column `row_key`, as the type `jsonb` is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_key: Option<String>,
    /// Column `old_row_key`, as the type `jsonb` is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_row_key: Option<String>,
    /// Column `changed_columns`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_columns: Option<Vec<String>>,
    /// Column `error_code`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    /// Column `value_count`.
    #[serde(default, with = "form", skip_serializing_if = "Option::is_none")]
    pub value_count: Option<i64>,
    /// Column `key_ids`.
    #[serde(default, with = "form", skip_serializing_if = "Option::is_none")]
    pub key_ids: Option<Vec<i64>>,
    /// Column `subject`, of version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Column `contexts`, of version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contexts: Option<Vec<String>>,
    /// Column `mac`, which somebody may have given any length.
    #[serde(default, with = "form", skip_serializing_if = "Option::is_none")]
    pub mac: Option<Vec<u8>>,
    /// Column `mac_key_id`.
    #[serde(default, with = "form", skip_serializing_if = "Option::is_none")]
    pub mac_key_id: Option<i64>,
}

/// What a row has of a MAC is not what the extension writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HalfAMac;

impl LogRow {
    /// Writes the encoding, in place of what `out` held: a version byte, then every column that says what happened, in the order of
    /// this structure, without its seals (`leaf`, `mac`, `mac_key_id`).
    ///
    /// Nothing stored says which version a row is of, so nothing stored can say it wrongly: it is the lowest that has all the columns in
    /// which the row has a value. To take those away, or to put some in, gives other bytes, which have another MAC.
    ///
    /// Integers are big-endian, of the column's width; a text is its length in UTF-8 (u32) and its
    /// bytes; an array its length (u32) and its elements; what may be NULL has a byte before it, 0 for
    /// NULL, 1 for a value. So every part says where it ends, and no two rows encode alike. (Texts
    /// are UTF-8 whatever the database's encoding, and below 1 GiB, as everything in Postgres is.)
    pub fn encode(&self, out: &mut Vec<u8>) {
        let is_version_2 = self.subject.is_some() || self.contexts.is_some();
        out.clear();
        out.push(if is_version_2 { VERSION_2 } else { VERSION_1 });
        integer(out, self.id);
        integer(out, self.at);
        text(out, &self.event);
        text(out, &self.actor);
        text(out, &self.role);
        optional(out, self.client_address.as_deref(), text);
        optional(out, self.application.as_deref(), text);
        out.extend_from_slice(&self.backend_pid.to_be_bytes());
        optional(out, self.transaction_id, |out, id| out.extend_from_slice(&id.to_be_bytes()));
        optional(out, self.tenant.as_deref(), text);
        optional(out, self.key_id, integer);
        optional(out, self.reason.as_deref(), text);
        optional(out, self.table_name.as_deref(), text);
        optional(out, self.partition_name.as_deref(), text);
        optional(out, self.row_key.as_deref(), text);
        optional(out, self.old_row_key.as_deref(), text);
        optional(out, self.changed_columns.as_deref(), texts);
        optional(out, self.error_code.as_deref(), text);
        optional(out, self.value_count, integer);
        optional(out, self.key_ids.as_deref(), |out, ids| {
            length(out, ids.len());
            ids.iter().for_each(|id| integer(out, *id));
        });
        if is_version_2 {
            optional(out, self.subject.as_deref(), text);
            optional(out, self.contexts.as_deref(), texts);
        }
    }

    /// Its MAC, with the id of the key that made it; none for a row that was written without a master key.
    pub fn mac(&self) -> Result<Option<(i64, &[u8; 32])>, HalfAMac> {
        match (self.mac.as_deref(), self.mac_key_id) {
            (None, None) => Ok(None),
            (Some(mac), Some(key_id)) => Ok(Some((key_id, mac.try_into().map_err(|_| HalfAMac)?))),
            _ => Err(HalfAMac),
        }
    }

    /// Its leaf of the tree; `encoded` is what [`encode`](Self::encode) gives. Half a MAC counts as
    /// none: it is found when the row is checked.
    pub fn leaf_hash(&self, encoded: &[u8]) -> Hash {
        leaf_hash(encoded, self.mac().unwrap_or_default())
    }
}

fn optional<T>(out: &mut Vec<u8>, value: Option<T>, encode: impl FnOnce(&mut Vec<u8>, T)) {
    out.push(value.is_some().into());
    if let Some(value) = value {
        encode(out, value);
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    length(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn texts(out: &mut Vec<u8>, list: &[String]) {
    length(out, list.len());
    list.iter().for_each(|one| text(out, one));
}

fn integer(out: &mut Vec<u8>, value: i64) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn length(out: &mut Vec<u8>, length: usize) {
    debug_assert!(u32::try_from(length).is_ok(), "Postgres holds no value of 4 GiB");
    out.extend_from_slice(&(length as u32).to_be_bytes());
}

/// The leaf of a row: `SHA-256(0x00 ‖ entry)`, RFC 6962 section 2.1.
///
/// The entry is `0x01 ‖ id of the MAC's key (8 bytes, big-endian) ‖ MAC ‖ encoded row`, or
/// `0x00 ‖ encoded row` for a row that is not authenticated.
pub fn leaf_hash(encoded: &[u8], mac: Option<(i64, &[u8; 32])>) -> Hash {
    match mac {
        Some((key_id, mac)) => sha256(&[&[0x00, 0x01], &key_id.to_be_bytes(), mac, encoded]),
        None => sha256(&[&[0x00, 0x00], encoded]),
    }
}
