//! `jsonb`, as text.

use std::ffi::CStr;

use pgrx::pg_sys::{self, Datum};

/// What `jsonb_out` writes, in the current memory context.
pub fn to_text<'a>(document: Datum) -> &'a [u8] {
    // SAFETY: called for arguments that the SQL declaration gives the type jsonb; the string lives as
    // long as the memory context of the call.
    unsafe {
        let text = pg_sys::OidOutputFunctionCall(pg_sys::Oid::from(pg_sys::F_JSONB_OUT), document);
        CStr::from_ptr(text).to_bytes()
    }
}
