//! What seals the log: acknowledgements of new names, and retention.

use crate::audit::{self, acknowledge, origin, retention};
use crate::error::Error;
use crate::pg::{audit_memory, security, transaction};

crate::pg::sql_functions! {
    acknowledge_audit_fork(reason: words!) -> bigint;
    acknowledge_audit_findings(reason: words!) -> bigint;
    audit_retention() -> text;
    retire_audit_partition(partition: words!) -> bigint;
}

fn acknowledge_audit_fork(reason: &[u8]) -> Result<u64, Error> {
    security::refuse_for_planted_code()?;
    transaction::refuse_unless_writable()?;
    origin::acknowledge_fork(reason)
}

fn acknowledge_audit_findings(reason: &[u8]) -> Result<u64, Error> {
    security::refuse_for_planted_code()?;
    transaction::refuse_unless_writable()?;
    acknowledge::findings(reason)
}

/// The setting. Only the postmaster's own is one that no client can have replaced.
fn audit_retention() -> Result<Vec<u8>, Error> {
    if !audit_memory::exists() {
        return Err(Error::AuditSeal {
            problem: "without pg_fieldcrypt in shared_preload_libraries the audit log is not sealed, and nothing of it is retired".into(),
            hint: "Add it to shared_preload_libraries and restart the server.",
        });
    }
    Ok(audit::retention_setting())
}

/// Empties a partition, and gives the number of its rows.
fn retire_audit_partition(partition: &[u8]) -> Result<i64, Error> {
    if transaction::has_one_snapshot() {
        return Err(Error::NeedsReadCommitted);
    }
    security::as_owner(|| retention::retire(partition))
}
