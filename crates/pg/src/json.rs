//! JSON, between Postgres and Rust.

use std::ffi::CStr;

use pgrx::pg_sys::{self, Datum};
use serde_json::Value;

use super::encoding;
use super::values::{self, Varlena};
use crate::error::Error;

/// What `jsonb_out` writes, in the current memory context.
pub fn to_text<'a>(document: Datum) -> &'a [u8] {
    // SAFETY: called for arguments that the SQL declaration gives the type jsonb; the string lives as
    // long as the memory context of the call.
    unsafe {
        let text = pg_sys::OidOutputFunctionCall(pg_sys::Oid::from(pg_sys::F_JSONB_OUT), document);
        CStr::from_ptr(text).to_bytes()
    }
}

/// A text as a datum of type `jsonb`, in the current memory context.
pub fn to_jsonb(text: &[u8]) -> Result<Datum, Error> {
    let text = values::c_string(text)?;
    // SAFETY: the arguments that every input function takes.
    Ok(unsafe {
        pg_sys::OidInputFunctionCall(
            pg_sys::F_JSONB_IN.into(),
            text.cast_mut_ptr(),
            pg_sys::InvalidOid,
            -1,
        )
    })
}

/// A document in the database's encoding.
pub fn in_database_encoding(document: &Value) -> Result<Vec<u8>, Error> {
    Ok(encoding::from_utf8(document.to_string().as_bytes())?.into_owned())
}

/// A document as a datum of type `text`.
pub fn to_datum(document: &Value) -> Result<Datum, Error> {
    Ok(Varlena::of(&in_database_encoding(document)?)?.into_datum())
}
