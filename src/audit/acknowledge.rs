//! Somebody's word on what verification finds though no fault of anybody's need be.

use fieldcrypt_audit::verify::Verifier;

use super::verify::{self, Period};
use super::{Details, mac_key};
use crate::error::Error;
use crate::events::Event;
use crate::pg::{encoding, log_table, security, transaction};

/// Somebody says why there are findings up to the last checkpoint. Gives how many that explains.
///
/// What is said is a row of the log with a MAC, and reaches to a leaf: what lies below it is sealed already. It
/// takes no forgery away: what was changed, cut off or put in under a seal is told as before.
pub fn findings(reason: &[u8]) -> Result<u64, Error> {
    refuse_without(
        reason,
        "SELECT fieldcrypt.acknowledge_audit_findings('the key file was missing after the restart of 3 May')",
    )?;
    let (count, size) = security::as_owner(|| {
        log_table::lock_sealing()?;
        let Some(last) = verify::last_checkpoint(&Period::default())? else {
            return Err(Error::AuditSeal {
                problem: "the audit log of this database is not sealed yet".into(),
                hint: "What is not sealed can't be acknowledged: SELECT * FROM fieldcrypt.audit_status().",
            });
        };
        let size = last.size.max(0);
        let known = |verifier: &mut Verifier| verifier.acknowledge(size.cast_unsigned());
        let (_, summary) = verify::findings(Period::default(), &[], known)?;
        Ok((summary.acknowledged, size))
    })?;
    if count == 0 {
        return Err(Error::AuditSeal {
            problem: "verification finds nothing that could be acknowledged".into(),
            hint: "SELECT * FROM fieldcrypt.verify_audit_log(): rows without a MAC, gaps, unclean handovers and keys that nobody introduced can be, once they are sealed; a fork by acknowledge_audit_fork(reason); what was changed can't.",
        });
    }
    if mac_key::active().is_none() {
        return Err(Error::AuditSeal {
            problem: "without its key the audit log takes no acknowledgement".into(),
            hint: "SELECT * FROM fieldcrypt.master_key_status() says why the master key can't be used.",
        });
    }
    let told =
        format!("{} ({count} findings about the leaves below {size})", encoding::lossy(reason));
    let told = encoding::from_utf8(told.as_bytes())?;
    super::record(
        Event::AuditFindingsAcknowledged,
        &Details { reason: Some(&told), value_count: Some(size), ..Details::default() },
    )?;
    Ok(count)
}

/// What is acknowledged has a reason, and is what is there now.
pub fn refuse_without(reason: &[u8], hint: &'static str) -> Result<(), Error> {
    if reason.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::AuditSeal { problem: "a reason is needed".into(), hint });
    }
    if transaction::has_one_snapshot() {
        return Err(Error::NeedsReadCommitted);
    }
    Ok(())
}
