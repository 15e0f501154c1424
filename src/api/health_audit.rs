//! What verifications of the audit log leave in their table.

use crate::error::Error;
use crate::pg::security;
use crate::pg::spi::{self, Parameter};

crate::pg::sql_functions! {
    store_verification(started_at: timestamptz, status: text, findings: bigint, detail: text) -> void;
}

fn store_verification(
    started_at: Option<i64>,
    status: Option<&[u8]>,
    findings: Option<i64>,
    detail: Option<&[u8]>,
) -> Result<u64, Error> {
    security::as_owner(|| {
        spi::execute(
            "INSERT INTO fieldcrypt.audit_verifications (started_at, status, findings, detail)
             VALUES ($1, $2, $3, $4)",
            &[
                Parameter::Time(started_at),
                Parameter::Text(status),
                Parameter::BigInt(findings),
                Parameter::Text(detail),
            ],
        )
    })
}
