//! The session's prepared statements.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::log_hook::Relations;

/// The text of the statement that was prepared under this name, which ends with a zero byte, and the relations
/// that it is about. Reads memory of the session only. They live until the statement is deallocated: use them
/// before anything runs.
pub fn prepared<'s>(name: &[u8; 64]) -> Option<(&'s [u8], Relations)> {
    let name = CStr::from_bytes_until_nul(name).ok()?;
    // SAFETY: looks into a hash table and answers NULL, without an error, if there is none; the source of
    // a prepared statement always has a text.
    unsafe {
        let statement = pg_sys::FetchPreparedStatement(name.as_ptr(), false);
        if statement.is_null() {
            return None;
        }
        let source = &*(*statement).plansource;
        let text =
            if source.query_string.is_null() { c"" } else { CStr::from_ptr(source.query_string) };
        Some((text.to_bytes(), Relations::of(source.relationOids)))
    }
}
