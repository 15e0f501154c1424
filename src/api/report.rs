//! The compliance report as a page: the document comes from SQL, the page from `crates/report`.

use pgrx::pg_sys::Datum;

use crate::error::Error;
use crate::pg::call::{Call, sql_functions};
use crate::pg::values::Varlena;
use crate::pg::{encoding, json};

sql_functions! {
    fieldcrypt_report_page, pg_finfo_fieldcrypt_report_page => page;
}

/// A page is ASCII, so it is the same in every database encoding and for every client.
fn page(call: &Call) -> Result<Option<Datum>, Error> {
    let Some(document) = call.datum(0) else { return Ok(None) };
    let document = encoding::lossy(json::to_text(document));
    let page = fieldcrypt_report::page(&document)
        .map_err(|problem| Error::Internal(problem.to_string()))?;
    Ok(Some(Varlena::of(page.as_bytes())?.into_datum()))
}
