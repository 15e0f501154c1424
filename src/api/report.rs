//! The compliance report as a page: the document comes from SQL, the page from `crates/report`.

use super::answer;
use crate::error::Error;
use crate::pg;
use crate::pg::encoding;
use crate::pg::json::Jsonb;
use crate::pg::values::Varlena;

pg::sql_functions! {
    report_page(report: jsonb) -> text;
}

/// A page is ASCII, so it is the same in every database encoding and for every client.
fn report_page(document: Option<Jsonb>) -> Result<Option<Varlena>, Error> {
    let Some(document) = document else { return Ok(None) };
    let document = encoding::lossy(document.to_text());
    let page = fieldcrypt_report::page(&document)
        .map_err(|problem| Error::Internal(problem.to_string()))?;
    answer(page.as_bytes())
}
