//! Verification of the sealed log, its export, and proofs of single rows.

use serde_json::Value;

use crate::audit::verify::{self, Period};
use crate::error::Error;
use crate::pg::set::TextSet;

crate::pg::sql_functions! {
    verify_audit_log(from_time: timestamptz, to_time: timestamptz, anchor: words!) -> text;
    set audit_export(from_time: timestamptz, to_time: timestamptz) = audit_export;
    audit_proof(log_id: bigint!) -> text = verify::proof;
}

fn verify_audit_log(from: Option<i64>, to: Option<i64>, anchor: &[u8]) -> Result<Value, Error> {
    verify::verify(Period { from, to }, anchor)
}

fn audit_export(lines: &TextSet, from: Option<i64>, to: Option<i64>) -> Result<(), Error> {
    verify::export(Period { from, to }, lines)
}
