//! The compliance report as a page: the document comes from SQL, the page from `crates/report`.

use crate::error::Error;
use crate::pg::encoding;
use crate::pg::json::Jsonb;

crate::pg::sql_functions! {
    report_page(report: jsonb) -> text;
}

/// A page is ASCII, so it is the same in every database encoding and for every client.
fn report_page(document: Option<Jsonb>) -> Result<Option<String>, Error> {
    let Some(document) = document else { return Ok(None) };
    let document = encoding::lossy(document.to_text());
    fieldcrypt_report::page(&document)
        .map(Some)
        .map_err(|problem| Error::Internal(problem.to_string()))
}
