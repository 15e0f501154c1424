//! A row of the log as it is sealed: what is authenticated when it is written and what is read back from
//! the table are the same bytes.

use std::borrow::Cow;

use fieldcrypt_audit::tree::Hash;
use fieldcrypt_audit::{Record, leaf_hash};

use crate::error::Error;
use crate::pg::tuple::Row;
use crate::pg::{encoding, json, network};

/// Column numbers of `fieldcrypt.audit_log`, in the order of `sql/audit_log.sql`.
pub mod columns {
    pub const ID: i16 = 1;
    pub const AT: i16 = 2;
    pub const EVENT: i16 = 3;
    pub const ACTOR: i16 = 4;
    pub const ROLE: i16 = 5;
    pub const CLIENT_ADDRESS: i16 = 6;
    pub const APPLICATION: i16 = 7;
    pub const BACKEND_PID: i16 = 8;
    pub const TRANSACTION_ID: i16 = 9;
    pub const TENANT: i16 = 10;
    pub const KEY_ID: i16 = 11;
    pub const REASON: i16 = 12;
    pub const TABLE_NAME: i16 = 13;
    pub const PARTITION_NAME: i16 = 14;
    pub const ROW_KEY: i16 = 15;
    pub const OLD_ROW_KEY: i16 = 16;
    pub const CHANGED_COLUMNS: i16 = 17;
    pub const ERROR_CODE: i16 = 18;
    pub const VALUE_COUNT: i16 = 19;
    pub const KEY_IDS: i16 = 20;
    pub const MAC: i16 = 21;
    pub const MAC_KEY_ID: i16 = 22;
    pub const LEAF: i16 = 23;
}

/// A row of `fieldcrypt.audit_log`, its texts in UTF-8.
#[derive(Debug, Clone, Default)]
pub struct OwnedRecord {
    /// Column `id`.
    pub id: i64,
    /// Column `at`, in microseconds since 1970.
    pub at: i64,
    /// Column `event`.
    pub event: String,
    /// Column `actor`.
    pub actor: String,
    /// Column `role`.
    pub role: String,
    /// Column `client_address`, as `inet` is written.
    pub client_address: Option<String>,
    /// Column `application`.
    pub application: Option<String>,
    /// Column `backend_pid`.
    pub backend_pid: i32,
    /// Column `transaction_id`.
    pub transaction_id: Option<u64>,
    /// Column `tenant`.
    pub tenant: Option<String>,
    /// Column `key_id`.
    pub key_id: Option<i64>,
    /// Column `reason`.
    pub reason: Option<String>,
    /// Column `table_name`.
    pub table_name: Option<String>,
    /// Column `partition_name`.
    pub partition_name: Option<String>,
    /// Column `row_key`, as `jsonb` is written.
    pub row_key: Option<String>,
    /// Column `old_row_key`, as `jsonb` is written.
    pub old_row_key: Option<String>,
    /// Column `changed_columns`.
    pub changed_columns: Option<Vec<String>>,
    /// Column `error_code`.
    pub error_code: Option<String>,
    /// Column `value_count`.
    pub value_count: Option<i64>,
    /// Column `key_ids`.
    pub key_ids: Option<Vec<i64>>,
    /// Column `mac`, which somebody may have given any length.
    pub mac: Option<Vec<u8>>,
    /// Column `mac_key_id`.
    pub mac_key_id: Option<i64>,
    /// Column `leaf`.
    pub leaf: Option<i64>,
}

/// What a row says of its authenticity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seal {
    /// Written without a master key.
    None,
    /// The key's id and the MAC.
    Mac(i64, [u8; 32]),
    /// Nothing that the extension writes.
    Malformed,
}

impl OwnedRecord {
    /// Reads a row of `audit_log`, or of a partition, with all its columns in their order.
    pub fn read(row: &Row<'_>) -> Result<Self, Error> {
        let text =
            |column| row.optional_bytes(column).map(|bytes| encoding::as_utf8(bytes).into_owned());
        let needed = |column| row.bytes(column).map(|bytes| encoding::as_utf8(bytes).into_owned());
        let bigint = |column| row.datum(column).map(|datum| datum.value() as i64);
        let jsonb = |column| {
            row.datum(column).map(|datum| encoding::as_utf8(json::to_text(datum)).into_owned())
        };
        Ok(Self {
            id: row.bigint(columns::ID)?,
            at: since_1970(row.bigint(columns::AT)?),
            event: needed(columns::EVENT)?,
            actor: needed(columns::ACTOR)?,
            role: needed(columns::ROLE)?,
            client_address: row.datum(columns::CLIENT_ADDRESS).map(network::address_text),
            application: text(columns::APPLICATION),
            backend_pid: row.integer(columns::BACKEND_PID)?,
            transaction_id: bigint(columns::TRANSACTION_ID).map(|id| id as u64),
            tenant: text(columns::TENANT),
            key_id: bigint(columns::KEY_ID),
            reason: text(columns::REASON),
            table_name: text(columns::TABLE_NAME),
            partition_name: text(columns::PARTITION_NAME),
            row_key: jsonb(columns::ROW_KEY),
            old_row_key: jsonb(columns::OLD_ROW_KEY),
            changed_columns: row.texts(columns::CHANGED_COLUMNS).map(|names| {
                names.into_iter().map(|name| encoding::as_utf8(name).into_owned()).collect()
            }),
            error_code: text(columns::ERROR_CODE),
            value_count: bigint(columns::VALUE_COUNT),
            key_ids: row.bigints(columns::KEY_IDS),
            mac: row.optional_bytes(columns::MAC).map(<[u8]>::to_vec),
            mac_key_id: bigint(columns::MAC_KEY_ID),
            leaf: bigint(columns::LEAF),
        })
    }

    /// Calls `work` with the record.
    pub fn with_record<R>(&self, work: impl FnOnce(&Record<'_>) -> R) -> R {
        let names: Option<Vec<&str>> =
            self.changed_columns.as_ref().map(|names| names.iter().map(String::as_str).collect());
        work(&Record {
            id: self.id,
            at: self.at,
            event: &self.event,
            actor: &self.actor,
            role: &self.role,
            client_address: self.client_address.as_deref(),
            application: self.application.as_deref(),
            backend_pid: self.backend_pid,
            transaction_id: self.transaction_id,
            tenant: self.tenant.as_deref(),
            key_id: self.key_id,
            reason: self.reason.as_deref(),
            table_name: self.table_name.as_deref(),
            partition_name: self.partition_name.as_deref(),
            row_key: self.row_key.as_deref(),
            old_row_key: self.old_row_key.as_deref(),
            changed_columns: names.as_deref(),
            error_code: self.error_code.as_deref(),
            value_count: self.value_count,
            key_ids: self.key_ids.as_deref(),
        })
    }

    /// The canonical encoding, in place of what `out` held.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        self.with_record(|record| record.encode(out));
    }

    /// Its MAC and key.
    pub fn seal(&self) -> Seal {
        match (self.mac.as_deref(), self.mac_key_id) {
            (None, None) => Seal::None,
            (Some(mac), Some(key_id)) => {
                mac.try_into().map_or(Seal::Malformed, |mac| Seal::Mac(key_id, mac))
            }
            _ => Seal::Malformed,
        }
    }

    /// Its leaf of the tree; `encoded` is what [`encode`](Self::encode) gave. A malformed seal counts as
    /// none: it is found when the row is checked.
    pub fn leaf_hash(&self, encoded: &[u8]) -> Hash {
        match self.seal() {
            Seal::Mac(key_id, mac) => leaf_hash(encoded, Some((key_id, &mac))),
            Seal::None | Seal::Malformed => leaf_hash(encoded, None),
        }
    }
}

/// Postgres's time, microseconds since 2000, as microseconds since 1970. An infinite one, which is never
/// written, becomes some other number.
pub fn since_1970(at: i64) -> i64 {
    at.wrapping_add(946_684_800_000_000)
}

/// Texts of the database in the form that is sealed.
pub fn sealed_text(text: Option<&[u8]>) -> Option<Cow<'_, str>> {
    text.map(encoding::as_utf8)
}
