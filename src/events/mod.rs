//! What is recorded: the names of all events, and the queue of those that outlive their transactions.

mod queue;
mod refusals;
mod settings;
pub mod shutdown_marker;

pub use queue::{QueuedEvent, Surviving, forget_load, push, push_load, to_server_log, want_worker};

use crate::pg::{call, denials};

/// Defines the settings, asks for memory, and is told of what is refused.
pub fn init() {
    settings::init();
    queue::init();
    call::on_error(refusals::called);
}

/// Is told of what Postgres refuses. After the redaction of the log has taken its place there.
pub fn listen_to_denials() {
    denials::init(refusals::denied);
}

/// Names the events once, for Rust and for column `event`.
macro_rules! events {
    ($($(#[$what:meta])* $event:ident = $name:literal,)*) => {
        /// What happened, as column `event` says it. Rows are written by the rooms that know of it; those
        /// that only SQL knows of, by `record_event(event, …)`. docs/audit.md says what each tells.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Event {
            $($(#[$what])* $event,)*
        }

        impl Event {
            /// As column `event` says it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$event => $name,)*
                }
            }

            /// From what column `event` says.
            pub fn parse(name: &[u8]) -> Option<Self> {
                $(if name == $name.as_bytes() {
                    return Some(Self::$event);
                })*
                None
            }
        }
    };
}

events! {
    KeyCreated = "key_created",
    /// A new version became the tenant's active key.
    KeyRotated = "key_rotated",
    /// A key stopped encrypting.
    KeyDeactivated = "key_deactivated",
    /// A key neither encrypts nor decrypts for now.
    KeySuspended = "key_suspended",
    KeyResumed = "key_resumed",
    /// A key is known to others.
    KeyCompromised = "key_compromised",
    KeyDestructionScheduled = "key_destruction_scheduled",
    KeyDestructionCancelled = "key_destruction_cancelled",
    /// A wrapped key was erased.
    KeyDestroyed = "key_destroyed",
    TenantShredded = "tenant_shredded",
    /// A step of a procedure on keys was refused or failed.
    KeyRefused = "key_refused",
    RowInserted = "row_inserted",
    RowUpdated = "row_updated",
    RowDeleted = "row_deleted",
    TableTruncated = "table_truncated",
    TableAudited = "table_audited",
    /// A partition of an audited table is one no more.
    TableDetached = "table_detached",
    TableUnaudited = "table_unaudited",
    /// A value, or several of a statement, did not decrypt.
    DecryptFailed = "decrypt_failed",
    /// The extension, or Postgres for want of a grant, refused a call.
    CallRefused = "call_refused",
    MasterKeyLoaded = "master_key_loaded",
    /// A process found no usable master key.
    MasterKeyFailed = "master_key_failed",
    MasterKeyRotationStarted = "master_key_rotation_started",
    MasterKeyRotationFinished = "master_key_rotation_finished",
    ValuesDecrypted = "values_decrypted",
    /// Events were not written to the log.
    AuditGap = "audit_gap",
    /// The log is sealed by a new signing key.
    AuditStarted = "audit_started",
    /// The log is sealed under a new name.
    AuditOriginBegun = "audit_origin_begun",
    /// Somebody said why there is a new name.
    AuditForkAcknowledged = "audit_fork_acknowledged",
    /// Somebody said why verification finds what no fault of anybody's need be.
    AuditFindingsAcknowledged = "audit_findings_acknowledged",
    /// A year of the log was emptied.
    AuditRetired = "audit_retired",
    /// ALTER EXTENSION UPDATE.
    ExtensionUpdated = "extension_updated",
    AccessGranted = "access_granted",
    AccessRevoked = "access_revoked",
    /// Which roles a privilege reaches has changed.
    AccessSnapshot = "access_snapshot",
    ColumnContextSet = "column_context_set",
    /// Plaintext that is written to a column is bound to its row from now on.
    ColumnProtected = "column_protected",
    ColumnUnprotected = "column_unprotected",
    /// What is written to a column is encrypted into another, beside it.
    ColumnEncryptionStarted = "column_encryption_started",
    /// A column that had values is encrypted; what it was before is kept.
    ColumnEncrypted = "column_encrypted",
    ColumnEncryptionUndone = "column_encryption_undone",
    PlaintextColumnDropped = "plaintext_column_dropped",
    KeysExported = "keys_exported",
    KeysImported = "keys_imported",
    /// Somebody confirmed that the states of the keys are the newest.
    KeyStatesConfirmed = "key_states_confirmed",
    RotationPolicySet = "rotation_policy_set",
    RotationPolicyRemoved = "rotation_policy_removed",
    ReencryptionStarted = "reencryption_started",
    /// A re-encryption moved every value.
    ReencryptionFinished = "reencryption_finished",
    /// A re-encryption left values behind.
    ReencryptionIncomplete = "reencryption_incomplete",
    ApprovalRequested = "approval_requested",
    ApprovalGiven = "approval_given",
    ApprovalRefused = "approval_refused",
    ApprovalUsed = "approval_used",
    ApprovalWithdrawn = "approval_withdrawn",
    AlertRaised = "alert_raised",
    AlertResolved = "alert_resolved",
}
