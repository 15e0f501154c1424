//! Network addresses.

use std::ffi::CStr;

use pgrx::pg_sys::{self, Datum};

use super::values;
use crate::error::Error;

/// An `inet` as its output function writes it.
pub fn address_text(address: Datum) -> String {
    // SAFETY: called for datums of type inet only; the string is copied.
    unsafe {
        let text = pg_sys::OidOutputFunctionCall(pg_sys::F_INET_OUT.into(), address);
        CStr::from_ptr(text).to_string_lossy().into_owned()
    }
}

/// An `inet`, from what its output function wrote.
pub fn address(text: &str) -> Result<Datum, Error> {
    let text = values::c_string(text.as_bytes())?;
    // SAFETY: the arguments that every input function takes.
    Ok(unsafe {
        pg_sys::OidInputFunctionCall(
            pg_sys::F_INET_IN.into(),
            text.cast_mut_ptr(),
            pg_sys::InvalidOid,
            -1,
        )
    })
}
