//! A row of the log in its one canonical encoding, and the leaf that it becomes.

use fieldcrypt_envelope::sha256;

use crate::tree::Hash;

/// The first byte of an encoded record.
pub const RECORD_VERSION: u8 = 0x01;

/// What a row of `fieldcrypt.audit_log` says, but for its seals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Column `id`.
    pub id: i64,
    /// Column `at`, in microseconds since 1970-01-01 00:00 UTC.
    pub at: i64,
    /// Column `event`.
    pub event: &'a str,
    /// Column `actor`.
    pub actor: &'a str,
    /// Column `role`.
    pub role: &'a str,
    /// Column `client_address`, as the type `inet` is written.
    pub client_address: Option<&'a str>,
    /// Column `application`.
    pub application: Option<&'a str>,
    /// Column `backend_pid`.
    pub backend_pid: i32,
    /// Column `transaction_id`.
    pub transaction_id: Option<u64>,
    /// Column `tenant`.
    pub tenant: Option<&'a str>,
    /// Column `key_id`.
    pub key_id: Option<i64>,
    /// Column `reason`.
    pub reason: Option<&'a str>,
    /// Column `table_name`.
    pub table_name: Option<&'a str>,
    /// Column `partition_name`.
    pub partition_name: Option<&'a str>,
    /// Column `row_key`, as the type `jsonb` is written.
    pub row_key: Option<&'a str>,
    /// Column `old_row_key`, as the type `jsonb` is written.
    pub old_row_key: Option<&'a str>,
    /// Column `changed_columns`.
    pub changed_columns: Option<&'a [&'a str]>,
    /// Column `error_code`.
    pub error_code: Option<&'a str>,
    /// Column `value_count`.
    pub value_count: Option<i64>,
    /// Column `key_ids`.
    pub key_ids: Option<&'a [i64]>,
}

impl Record<'_> {
    /// Appends the encoding: a version byte, then every column in the order of this structure.
    ///
    /// Integers are big-endian, of the column's width; a text is its length in UTF-8 (u32) and its
    /// bytes; an array its length (u32) and its elements; what may be NULL has a byte before it, 0 for
    /// NULL, 1 for a value. So every part says where it ends, and no two records encode alike. (Texts
    /// are UTF-8 whatever the database's encoding, and below 1 GiB, as everything in Postgres is.)
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(RECORD_VERSION);
        out.extend_from_slice(&self.id.to_be_bytes());
        out.extend_from_slice(&self.at.to_be_bytes());
        text(out, self.event);
        text(out, self.actor);
        text(out, self.role);
        optional(out, self.client_address, text);
        optional(out, self.application, text);
        out.extend_from_slice(&self.backend_pid.to_be_bytes());
        optional(out, self.transaction_id, |out, id| out.extend_from_slice(&id.to_be_bytes()));
        optional(out, self.tenant, text);
        optional(out, self.key_id, integer);
        optional(out, self.reason, text);
        optional(out, self.table_name, text);
        optional(out, self.partition_name, text);
        optional(out, self.row_key, text);
        optional(out, self.old_row_key, text);
        optional(out, self.changed_columns, |out, names| {
            length(out, names.len());
            names.iter().for_each(|name| text(out, name));
        });
        optional(out, self.error_code, text);
        optional(out, self.value_count, integer);
        optional(out, self.key_ids, |out, ids| {
            length(out, ids.len());
            ids.iter().for_each(|id| integer(out, *id));
        });
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

fn integer(out: &mut Vec<u8>, value: i64) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn length(out: &mut Vec<u8>, length: usize) {
    debug_assert!(u32::try_from(length).is_ok(), "Postgres holds no value of 4 GiB");
    out.extend_from_slice(&(length as u32).to_be_bytes());
}

/// The leaf of a row: `SHA-256(0x00 ‖ entry)`, RFC 6962 section 2.1.
///
/// The entry is `0x01 ‖ id of the MAC's key (8 bytes, big-endian) ‖ MAC ‖ encoded record`, or
/// `0x00 ‖ encoded record` for a row that is not authenticated.
pub fn leaf_hash(encoded: &[u8], mac: Option<(i64, &[u8; 32])>) -> Hash {
    match mac {
        Some((key_id, mac)) => sha256(&[&[0x00, 0x01], &key_id.to_be_bytes(), mac, encoded]),
        None => sha256(&[&[0x00, 0x00], encoded]),
    }
}
