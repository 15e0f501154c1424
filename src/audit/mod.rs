//! The audit log: who did what with which key and which row. Never a value.

pub mod acknowledge;
pub mod launcher;
mod mac_key;
mod notes;
pub mod origin;
mod pending;
mod publisher;
pub mod retention;
mod row;
pub mod row_trigger;
mod seal;
mod settings;
mod signer;
pub mod table_notes;
mod tree;
pub mod verify;
pub mod worker;
mod write;

use std::cell::Cell;

use fieldcrypt_envelope::KeyId;

pub use settings::retention as retention_setting;
pub use write::record;

use crate::error::Error;
use crate::events::{self, Event};
use crate::pg::callbacks::{self, Listener};
use crate::pg::spi::{self, Parameter};
use crate::pg::{background, security};

/// Defines the settings, registers the launcher and its workers, and is told of the ends of transactions.
pub fn init() {
    settings::init();
    background::init(background::Work { launcher: launcher::run, worker: worker::run });
    pending::init();
    callbacks::listen(Listener {
        before_commit: pending::before_commit,
        committed: transaction_committed,
        gone: tree::transaction_gone,
        ended: || {
            HAS_RECORDED.set(false);
            table_notes::forget();
            pending::transaction_ended();
        },
        sub_committed: pending::subtransaction_committed,
        sub_gone: |subtransaction| {
            table_notes::forget();
            pending::subtransaction_gone(subtransaction);
        },
        ..Listener::DEAF
    });
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
    /// When, in Postgres's time, if that is to be what a table says, too; otherwise now.
    pub at: Option<i64>,
    /// The keys, where there are several.
    pub key_ids: Option<&'a [i64]>,
    /// What decrypted values are bound to.
    pub contexts: Option<&'a [Vec<u8>]>,
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
        security::refuse_for_planted_code()?;
    }
    record(
        event,
        &Details { tenant: Some(tenant), key_id: Some(key_id), reason, ..Details::default() },
    )
}

/// Records an event of the log itself, in words, at the time that a table says, too.
fn record_reason(event: Event, reason: &str, at: i64) -> Result<(), Error> {
    let reason = Some(reason.as_bytes());
    record(event, &Details { reason, at: Some(at), ..Details::default() })
}

/// Records an event of a tenant.
pub fn record_tenant(event: Event, tenant: &[u8], reason: Option<&[u8]>) -> Result<(), Error> {
    security::refuse_for_planted_code()?;
    record(event, &Details { tenant: Some(tenant), reason, ..Details::default() })
}

thread_local! {
    static HAS_RECORDED: Cell<bool> = const { Cell::new(false) };
}

/// Rows that this transaction wrote are to be sealed now. Called where nothing may fail.
fn transaction_committed() {
    if HAS_RECORDED.get() {
        events::want_worker();
    }
}

/// Whether the log tells of keys that were made under an id from this one on.
pub fn has_key_events_since(first_id: i64) -> Result<bool, Error> {
    let rows = security::as_owner(|| {
        spi::execute(
            "SELECT FROM fieldcrypt.audit_log
              WHERE id OPERATOR(pg_catalog.>=) $1 AND event OPERATOR(pg_catalog.=) ANY ('{key_created,key_rotated}'::pg_catalog.text[])
              LIMIT 1",
            &[Parameter::BigInt(Some(first_id))],
        )
    })?;
    Ok(rows > 0)
}
