//! The session's prepared statements.

use std::ffi::CStr;

use pgrx::pg_sys;

/// The text of the statement that was prepared under this name, which ends with a zero byte. Reads memory
/// of the session only. The text lives until the statement is deallocated: use it before anything runs.
pub fn prepared<'s>(name: &[u8; 64]) -> Option<&'s [u8]> {
    let name = CStr::from_bytes_until_nul(name).ok()?;
    // SAFETY: looks into a hash table and answers NULL, without an error, if there is none; the source of
    // a prepared statement always has a text.
    unsafe {
        let statement = pg_sys::FetchPreparedStatement(name.as_ptr(), false);
        if statement.is_null() {
            return None;
        }
        let text = (*(*statement).plansource).query_string;
        (!text.is_null()).then(|| CStr::from_ptr(text).to_bytes())
    }
}
