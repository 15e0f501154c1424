//! A row of the log as it is sealed: what is authenticated when it is written and what is read back from
//! the table are the same bytes.

use fieldcrypt_audit::LogRow;
use fieldcrypt_envelope::KeyId;

use super::Details;
use crate::error::Error;
use crate::events::Event;
use crate::pg::client::Client;
use crate::pg::json::Jsonb;
use crate::pg::network::Inet;
use crate::pg::tuple::Row;
use crate::pg::{clock, encoding};

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
    pub const SUBJECT: i16 = 24;
    pub const CONTEXTS: i16 = 25;
}

/// A row of `audit_log`, or of a partition, with all its columns in their order.
pub fn read(row: &Row<'_>) -> Result<LogRow, Error> {
    let text = |bytes| encoding::as_utf8(bytes).into_owned();
    let optional = |column| Ok::<_, Error>(row.optional_bytes(column)?.map(text));
    let needed = |column| row.bytes(column).map(text);
    let texts = |column| {
        let list = row.texts(column)?;
        Ok::<_, Error>(list.map(|list| list.into_iter().map(text).collect()))
    };
    let jsonb = |column| Ok::<_, Error>(row.jsonb(column)?.map(document));
    Ok(LogRow {
        id: row.bigint(columns::ID)?,
        at: clock::unix_time(row.bigint(columns::AT)?),
        event: needed(columns::EVENT)?,
        actor: needed(columns::ACTOR)?,
        role: needed(columns::ROLE)?,
        client_address: row.inet(columns::CLIENT_ADDRESS)?.map(Inet::to_text),
        application: optional(columns::APPLICATION)?,
        backend_pid: row.integer(columns::BACKEND_PID)?,
        transaction_id: row.optional_bigint(columns::TRANSACTION_ID)?.map(|id| id as u64),
        tenant: optional(columns::TENANT)?,
        key_id: row.optional_bigint(columns::KEY_ID)?,
        reason: optional(columns::REASON)?,
        table_name: optional(columns::TABLE_NAME)?,
        partition_name: optional(columns::PARTITION_NAME)?,
        row_key: jsonb(columns::ROW_KEY)?,
        old_row_key: jsonb(columns::OLD_ROW_KEY)?,
        changed_columns: texts(columns::CHANGED_COLUMNS)?,
        error_code: optional(columns::ERROR_CODE)?,
        value_count: row.optional_bigint(columns::VALUE_COUNT)?,
        key_ids: row.bigints(columns::KEY_IDS)?,
        subject: optional(columns::SUBJECT)?,
        contexts: texts(columns::CONTEXTS)?,
        mac: row.optional_bytes(columns::MAC)?.map(<[u8]>::to_vec),
        mac_key_id: row.optional_bigint(columns::MAC_KEY_ID)?,
        leaf: row.optional_bigint(columns::LEAF)?,
    })
}

/// A row that is about to be written. What only some have, the caller adds.
pub fn of(id: i64, at: i64, event: Event, client: &Client, details: &Details<'_>) -> LogRow {
    let text = |bytes: &[u8]| encoding::as_utf8(bytes).into_owned();
    let texts = |list: &[Vec<u8>]| list.iter().map(|one| text(one)).collect();
    LogRow {
        id,
        at: clock::unix_time(at),
        event: event.name().into(),
        actor: text(&client.actor),
        role: text(&client.role),
        client_address: client.address.clone(),
        application: Some(text(&client.application)),
        backend_pid: client.process,
        tenant: details.tenant.map(text),
        key_id: details.key_id.map(KeyId::as_i64),
        reason: details.reason.map(text),
        table_name: details.table_name.map(text),
        partition_name: details.partition_name.map(text),
        changed_columns: details.changed_columns.map(texts),
        error_code: details.error_code.map(str::to_owned),
        value_count: details.value_count,
        key_ids: details.key_ids.map(<[i64]>::to_vec),
        subject: client.subject.as_deref().map(text),
        contexts: details.contexts.map(texts),
        ..LogRow::default()
    }
}

/// A document as it is sealed.
pub fn document(document: Jsonb) -> String {
    encoding::as_utf8(document.to_text()).into_owned()
}
