//! Network addresses.

use std::ffi::CStr;
use std::marker::PhantomData;

use pgrx::pg_sys::{self, Datum};

use super::values;
use fieldcrypt_error::Error;

/// A value of type `inet`, in memory that lives as long.
#[derive(Clone, Copy)]
pub struct Inet<'a>(Datum, PhantomData<&'a ()>);

impl Inet<'_> {
    /// # Safety
    ///
    /// The datum is a non-null `inet`.
    pub(super) unsafe fn new(datum: Datum) -> Self {
        Self(datum, PhantomData)
    }

    /// From what its output function wrote.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let text = values::c_string(text.as_bytes())?;
        // SAFETY: the arguments that every input function takes.
        let address = unsafe {
            pg_sys::OidInputFunctionCall(
                pg_sys::F_INET_IN.into(),
                text.cast_mut_ptr(),
                pg_sys::InvalidOid,
                -1,
            )
        };
        Ok(Self(address, PhantomData))
    }

    /// As its output function writes it.
    pub fn to_text(self) -> String {
        // SAFETY: an inet; the string is copied.
        unsafe {
            let text = pg_sys::OidOutputFunctionCall(pg_sys::F_INET_OUT.into(), self.0);
            CStr::from_ptr(text).to_string_lossy().into_owned()
        }
    }

    /// The datum.
    pub fn datum(self) -> Datum {
        self.0
    }
}
