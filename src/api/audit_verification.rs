//! Verification of the sealed log, its export, and proofs of single rows.

use super::{answer, given};
use crate::audit::verify::{self, Period};
use crate::error::Error;
use crate::pg;
use crate::pg::json;
use crate::pg::set::TextSet;
use crate::pg::values::Varlena;

pg::sql_functions! {
    verify_audit_log(from_time: timestamptz, to_time: timestamptz, anchor: text) -> text;
    set audit_export(from_time: timestamptz, to_time: timestamptz);
    audit_proof(log_id: bigint) -> text;
}

fn verify_audit_log(
    from: Option<i64>,
    to: Option<i64>,
    anchor: Option<&[u8]>,
) -> Result<Option<Varlena>, Error> {
    let findings = verify::verify(Period { from, to }, given(anchor, "anchor")?)?;
    json::to_text(&findings).map(Some)
}

fn audit_export(lines: &TextSet, from: Option<i64>, to: Option<i64>) -> Result<(), Error> {
    verify::export(Period { from, to }, lines)
}

fn audit_proof(log_id: Option<i64>) -> Result<Option<Varlena>, Error> {
    answer(verify::proof(given(log_id, "log_id")?)?.as_bytes())
}
