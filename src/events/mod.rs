//! What is recorded: the names of all events, and the queue of those that outlive their transactions.

mod queue;
mod refusals;
mod settings;
pub mod shutdown_marker;

pub use queue::{QueuedEvent, Surviving, push, to_server_log, want_worker};

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
        /// that only SQL knows of, by `record(event, …)`.
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
    /// A tenant's first key was made.
    KeyCreated = "key_created",
    /// A new version became the tenant's active key.
    KeyRotated = "key_rotated",
    /// A key stopped encrypting.
    KeyDeactivated = "key_deactivated",
    /// A key neither encrypts nor decrypts for now.
    KeySuspended = "key_suspended",
    /// A suspended key is back.
    KeyResumed = "key_resumed",
    /// A key is known to others.
    KeyCompromised = "key_compromised",
    /// A key is to be destroyed.
    KeyDestructionScheduled = "key_destruction_scheduled",
    /// A key is not to be destroyed after all.
    KeyDestructionCancelled = "key_destruction_cancelled",
    /// A wrapped key was erased.
    KeyDestroyed = "key_destroyed",
    /// All keys of a tenant were destroyed.
    TenantShredded = "tenant_shredded",
    /// A step of a procedure on keys was refused or failed.
    KeyRefused = "key_refused",
    /// A row of an audited table was inserted.
    RowInserted = "row_inserted",
    /// A row of an audited table was updated.
    RowUpdated = "row_updated",
    /// A row of an audited table was deleted.
    RowDeleted = "row_deleted",
    /// An audited table was emptied.
    TableTruncated = "table_truncated",
    /// Changes of a table are recorded from now on.
    TableAudited = "table_audited",
    /// Changes of a table are no longer recorded.
    TableUnaudited = "table_unaudited",
    /// A value, or several of a statement, did not decrypt.
    DecryptFailed = "decrypt_failed",
    /// The extension, or Postgres for want of a grant, refused a call.
    CallRefused = "call_refused",
    /// A process loaded the master key.
    MasterKeyLoaded = "master_key_loaded",
    /// A process found no usable master key.
    MasterKeyFailed = "master_key_failed",
    /// A rotation of the master key has begun.
    MasterKeyRotationStarted = "master_key_rotation_started",
    /// A rotation of the master key is over.
    MasterKeyRotationFinished = "master_key_rotation_finished",
    /// Values were decrypted.
    ValuesDecrypted = "values_decrypted",
    /// Events were not written to the log.
    AuditGap = "audit_gap",
    /// The log is sealed by a new signing key.
    AuditStarted = "audit_started",
    /// The log is sealed under a new name.
    AuditOriginBegun = "audit_origin_begun",
    /// Somebody said why there is a new name.
    AuditForkAcknowledged = "audit_fork_acknowledged",
    /// A year of the log was emptied.
    AuditRetired = "audit_retired",
    /// Privileges were granted.
    AccessGranted = "access_granted",
    /// Privileges were taken away.
    AccessRevoked = "access_revoked",
    /// What a column's values are bound to was set.
    ColumnContextSet = "column_context_set",
    /// The keys were exported.
    KeysExported = "keys_exported",
    /// Keys were imported.
    KeysImported = "keys_imported",
    /// Somebody confirmed that the states of the keys are the newest.
    KeyStatesConfirmed = "key_states_confirmed",
    /// A rotation policy was set.
    RotationPolicySet = "rotation_policy_set",
    /// A rotation policy was removed.
    RotationPolicyRemoved = "rotation_policy_removed",
    /// A re-encryption has begun.
    ReencryptionStarted = "reencryption_started",
    /// A re-encryption moved every value.
    ReencryptionFinished = "reencryption_finished",
    /// A re-encryption left values behind.
    ReencryptionIncomplete = "reencryption_incomplete",
    /// An approval was asked for.
    ApprovalRequested = "approval_requested",
    /// An approval was given.
    ApprovalGiven = "approval_given",
    /// An approval was refused.
    ApprovalRefused = "approval_refused",
    /// An approval was spent.
    ApprovalUsed = "approval_used",
    /// An approval was withdrawn.
    ApprovalWithdrawn = "approval_withdrawn",
    /// An alert was raised.
    AlertRaised = "alert_raised",
    /// An alert is over.
    AlertResolved = "alert_resolved",
}
