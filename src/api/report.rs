//! The compliance report as a page: the document comes from SQL, the page from `crates/report`.

use crate::error::Error;
use crate::pg::encoding;
use crate::pg::json::Jsonb;
use crate::pg::reserve;

crate::pg::sql_functions! {
    report_page(report: jsonb) -> text;
}

/// A page is ASCII, so it is the same in every database encoding and for every client.
fn report_page(document: Option<Jsonb>) -> Result<Option<String>, Error> {
    let Some(document) = document else { return Ok(None) };
    let document = document.to_text();
    // What is read of it, and the page, with the copies by which they grow.
    reserve::room(document.len().saturating_mul(6), "the page of a compliance report")?;
    fieldcrypt_report::page(&encoding::lossy(document)).map(Some).map_err(|_| Error::NotAReport)
}
