//! The audit log: who did what with which key and which row. Never a value.

pub mod failures;
pub mod launcher;
mod notes;
mod origin;
mod publisher;
pub mod queue;
mod retention;
pub mod row;
pub mod row_trigger;
pub mod seal;
pub mod settings;
mod signer;
mod status;
mod verify;
pub mod worker;

use std::cell::Cell;

use fieldcrypt_audit::LogRow;
use fieldcrypt_envelope::KeyId;
use pgrx::pg_sys::{BuiltinOid, Datum};

use crate::error::Error;
use crate::keyring;
use crate::pg::call::{Call, sql_functions};
use crate::pg::client::Client;
use crate::pg::spi::{self, Parameter};
use crate::pg::values::Varlena;
use crate::pg::{arrays, catalog, encoding, json, network, session};

sql_functions! {
    fieldcrypt_record, pg_finfo_fieldcrypt_record => record_called;
    fieldcrypt_outer_role, pg_finfo_fieldcrypt_outer_role => outer_role;
}

/// Defines the settings, asks for memory.
pub fn init() {
    settings::init();
    queue::init();
}

/// What happened, as column `event` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A tenant's first key was made.
    KeyCreated,
    /// A new version became the tenant's active key.
    KeyRotated,
    /// A key stopped encrypting.
    KeyDeactivated,
    /// A key neither encrypts nor decrypts for now.
    KeySuspended,
    /// A suspended key is back.
    KeyResumed,
    /// A key is known to others.
    KeyCompromised,
    /// A key is to be destroyed.
    KeyDestructionScheduled,
    /// A key is not to be destroyed after all.
    KeyDestructionCancelled,
    /// A wrapped key was erased.
    KeyDestroyed,
    /// All keys of a tenant were destroyed.
    TenantShredded,
    /// A row of an audited table was inserted.
    RowInserted,
    /// A row of an audited table was updated.
    RowUpdated,
    /// A row of an audited table was deleted.
    RowDeleted,
    /// An audited table was emptied.
    TableTruncated,
    /// A value, or several of a statement, did not decrypt.
    DecryptFailed,
    /// The extension refused a call.
    CallRefused,
    /// A process loaded the master key.
    MasterKeyLoaded,
    /// A process found no usable master key.
    MasterKeyFailed,
    /// Values were decrypted.
    ValuesDecrypted,
    /// Events were not written to the log.
    AuditGap,
    /// The log is sealed by a new signing key.
    AuditStarted,
}

impl Event {
    /// As column `event` says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::KeyCreated => "key_created",
            Self::KeyRotated => "key_rotated",
            Self::KeyDeactivated => "key_deactivated",
            Self::KeySuspended => "key_suspended",
            Self::KeyResumed => "key_resumed",
            Self::KeyCompromised => "key_compromised",
            Self::KeyDestructionScheduled => "key_destruction_scheduled",
            Self::KeyDestructionCancelled => "key_destruction_cancelled",
            Self::KeyDestroyed => "key_destroyed",
            Self::TenantShredded => "tenant_shredded",
            Self::RowInserted => "row_inserted",
            Self::RowUpdated => "row_updated",
            Self::RowDeleted => "row_deleted",
            Self::TableTruncated => "table_truncated",
            Self::DecryptFailed => "decrypt_failed",
            Self::CallRefused => "call_refused",
            Self::MasterKeyLoaded => "master_key_loaded",
            Self::MasterKeyFailed => "master_key_failed",
            Self::ValuesDecrypted => "values_decrypted",
            Self::AuditGap => "audit_gap",
            Self::AuditStarted => "audit_started",
        }
    }
}

/// What a row of the log says besides who, when and from where.
#[derive(Default)]
pub struct Details<'a> {
    /// The tenant.
    pub tenant: Option<&'a [u8]>,
    /// The key.
    pub key_id: Option<KeyId>,
    /// Why, in the caller's words.
    pub reason: Option<&'a [u8]>,
    /// The table, qualified.
    pub table_name: Option<&'a [u8]>,
    /// The partition, if the row lies in one.
    pub partition_name: Option<&'a [u8]>,
    /// The primary key as a JSON object.
    pub row_key: Option<&'a [u8]>,
    /// The primary key before an UPDATE that changed it, as a JSON object.
    pub old_row_key: Option<&'a [u8]>,
    /// Encrypted columns that changed.
    pub changed_columns: Option<&'a [Vec<u8>]>,
    /// SQLSTATE of a failure or refusal.
    pub error_code: Option<&'a str>,
    /// How many values, or events, the row stands for.
    pub value_count: Option<i64>,
    /// The keys, where there are several.
    pub key_ids: Option<&'a [i64]>,
}

/// Records an event of a key. A first key may be made wherever something is encrypted; all else is
/// somebody's decision.
pub fn record_key(
    event: Event,
    tenant: &[u8],
    key_id: KeyId,
    reason: Option<&[u8]>,
) -> Result<(), Error> {
    if event != Event::KeyCreated {
        session::refuse_for_planted_code()?;
    }
    record(
        event.name(),
        &Details { tenant: Some(tenant), key_id: Some(key_id), reason, ..Details::default() },
    )
}

/// Records an event of a tenant.
pub fn record_tenant(event: Event, tenant: &[u8], reason: Option<&[u8]>) -> Result<(), Error> {
    session::refuse_for_planted_code()?;
    record(event.name(), &Details { tenant: Some(tenant), reason, ..Details::default() })
}

/// Records a change of an audited table.
pub fn record_change(event: Event, details: &Details<'_>) -> Result<(), Error> {
    record(event.name(), details)
}

thread_local! {
    static HAS_RECORDED: Cell<bool> = const { Cell::new(false) };
}

/// Rows that this transaction wrote are to be sealed now. Called where nothing may fail.
pub fn transaction_committed() {
    if HAS_RECORDED.get() {
        queue::want_worker();
    }
}

/// The transaction is over, however it ended.
pub fn transaction_ended() {
    HAS_RECORDED.set(false);
}

/// Whether the log tells of keys that were made under an id from this one on.
pub fn has_key_events_since(first_id: i64) -> Result<bool, Error> {
    let rows = session::as_owner(|| {
        spi::execute(
            "SELECT FROM fieldcrypt.audit_log
              WHERE id OPERATOR(pg_catalog.>=) $1 AND event OPERATOR(pg_catalog.=) ANY ('{key_created,key_rotated}'::pg_catalog.text[])
              LIMIT 1",
            &[Parameter::BigInt(Some(first_id))],
        )
    })?;
    Ok(rows > 0)
}

/// Writes a row, authenticated if a key for that can be had, as the log's owner: whoever did it needs no
/// right on the log.
fn record(event: &str, details: &Details<'_>) -> Result<(), Error> {
    HAS_RECORDED.set(true);
    // First, since a key that is made now is recorded too.
    let mac_key = keyring::active_audit_key();
    let client = Client::now();
    let id = catalog::next_log_id()?;
    let at = session::now();
    let transaction_id = session::transaction_id();
    // As the table gives them back.
    let row_key = details.row_key.map(json::to_jsonb).transpose()?;
    let old_row_key = details.old_row_key.map(json::to_jsonb).transpose()?;
    let text = |bytes: &[u8]| encoding::as_utf8(bytes).into_owned();
    let jsonb_text = |datum: Option<Datum>| datum.map(|datum| text(json::to_text(datum)));
    let mut encoded = Vec::with_capacity(512);
    LogRow {
        id,
        at: row::since_1970(at),
        event: event.into(),
        actor: text(&client.actor),
        role: text(&client.role),
        client_address: client.address.clone(),
        application: Some(text(&client.application)),
        backend_pid: client.process,
        transaction_id: Some(transaction_id),
        tenant: row::sealed_text(details.tenant),
        key_id: details.key_id.map(KeyId::as_i64),
        reason: row::sealed_text(details.reason),
        table_name: row::sealed_text(details.table_name),
        partition_name: row::sealed_text(details.partition_name),
        row_key: jsonb_text(row_key),
        old_row_key: jsonb_text(old_row_key),
        changed_columns: details
            .changed_columns
            .map(|names| names.iter().map(|name| text(name)).collect()),
        error_code: details.error_code.map(str::to_owned),
        value_count: details.value_count,
        key_ids: details.key_ids.map(<[i64]>::to_vec),
        ..LogRow::default()
    }
    .encode(&mut encoded);
    let mac = authenticate(mac_key, &encoded);
    let bytea = |bytes: [u8; 32]| Varlena::of(&bytes).map(Varlena::into_datum);
    let texts = |list: &[Vec<u8>]| {
        arrays::of_bytes(BuiltinOid::TEXTOID, list.iter().map(|one| Some(one.as_slice())))
    };
    let bigints =
        |list: &[i64]| arrays::of_numbers(BuiltinOid::INT8OID, list.iter().copied().map(Some));
    let address = client.address.as_deref().map(network::address).transpose()?;
    let written = session::as_owner(|| {
        spi::execute(
            "INSERT INTO fieldcrypt.audit_log
                    (id, at, event, actor, role, client_address, application, backend_pid,
                     transaction_id, tenant, key_id, reason, table_name, partition_name, row_key,
                     old_row_key, changed_columns, error_code, value_count, key_ids, mac, mac_key_id)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
                     $19, $20, $21, $22)",
            &[
                Parameter::BigInt(Some(id)),
                Parameter::Time(Some(at)),
                Parameter::Text(Some(event.as_bytes())),
                Parameter::Text(Some(&client.actor)),
                Parameter::Text(Some(&client.role)),
                Parameter::Made(BuiltinOid::INETOID, address),
                Parameter::Text(Some(&client.application)),
                Parameter::Integer(client.process),
                Parameter::Made(BuiltinOid::XID8OID, Some(Datum::from(transaction_id))),
                Parameter::Text(details.tenant),
                Parameter::BigInt(details.key_id.map(KeyId::as_i64)),
                Parameter::Text(details.reason),
                Parameter::Text(details.table_name),
                Parameter::Text(details.partition_name),
                Parameter::Made(BuiltinOid::JSONBOID, row_key),
                Parameter::Made(BuiltinOid::JSONBOID, old_row_key),
                Parameter::Made(
                    BuiltinOid::TEXTARRAYOID,
                    details.changed_columns.map(texts).transpose()?,
                ),
                Parameter::Text(details.error_code.map(str::as_bytes)),
                Parameter::BigInt(details.value_count),
                Parameter::Made(
                    BuiltinOid::INT8ARRAYOID,
                    details.key_ids.map(bigints).transpose()?,
                ),
                Parameter::Made(
                    BuiltinOid::BYTEAOID,
                    mac.map(|(_, mac)| bytea(mac)).transpose()?,
                ),
                Parameter::BigInt(mac.map(|(key_id, _)| key_id.as_i64())),
            ],
        )
    })?;
    if written == 1 {
        Ok(())
    } else {
        // A trigger that somebody put on the log.
        Err(Error::KeyTable("the audit log did not take a row".into()))
    }
}

/// The MAC of an encoded row under this key, if it can be used.
fn authenticate(key_id: Option<KeyId>, encoded: &[u8]) -> Option<(KeyId, [u8; 32])> {
    let key_id = key_id?;
    Some((key_id, keyring::with_audit_key(key_id, |key| key.mac(encoded)).ok()?))
}

/// `record_event`, for the functions of `sql/`.
fn record_called(call: &Call) -> Result<Option<Datum>, Error> {
    session::refuse_for_planted_code()?;
    let event = call.bytes(0).ok_or(Error::NullArgument("event"))?;
    let event = str::from_utf8(event).map_err(|_| Error::NotUtf8)?;
    let key_id = call.key_id(2);
    record(
        event,
        &Details {
            tenant: call.bytes(1),
            key_id,
            reason: call.bytes(3),
            table_name: call.bytes(4),
            ..Details::default()
        },
    )?;
    Ok(Some(Datum::null()))
}

fn outer_role(_: &Call) -> Result<Option<Datum>, Error> {
    Ok(Some(Varlena::of(&session::outer_role())?.into_datum()))
}
