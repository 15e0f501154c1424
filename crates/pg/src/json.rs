//! JSON, between Postgres and Rust.

use std::ffi::CStr;
use std::marker::PhantomData;

use pgrx::pg_sys::{self, Datum};
use serde_json::Value;

use super::encoding;
use super::values::{self, Varlena};
use fieldcrypt_error::Error;

/// A value of type `jsonb`, in memory that lives as long.
#[derive(Clone, Copy)]
pub struct Jsonb<'a>(Datum, PhantomData<&'a ()>);

impl<'a> Jsonb<'a> {
    /// # Safety
    ///
    /// The datum is a non-null `jsonb`.
    pub(super) unsafe fn new(datum: Datum) -> Self {
        Self(datum, PhantomData)
    }

    /// Parses a text, in the current memory context.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let text = values::c_string(text)?;
        // SAFETY: the arguments that every input function takes.
        let document = unsafe {
            pg_sys::OidInputFunctionCall(
                pg_sys::F_JSONB_IN.into(),
                text.cast_mut_ptr(),
                pg_sys::InvalidOid,
                -1,
            )
        };
        Ok(Self(document, PhantomData))
    }

    /// What `jsonb_out` writes, in the current memory context.
    pub fn to_text(self) -> &'a [u8] {
        // SAFETY: a jsonb; the string lives as long as the memory context of the call.
        unsafe {
            let text =
                pg_sys::OidOutputFunctionCall(pg_sys::Oid::from(pg_sys::F_JSONB_OUT), self.0);
            CStr::from_ptr(text).to_bytes()
        }
    }

    /// The datum.
    pub fn datum(self) -> Datum {
        self.0
    }
}

/// A document in the database's encoding.
pub fn in_database_encoding(document: &Value) -> Result<Vec<u8>, Error> {
    Ok(encoding::from_utf8(document.to_string().as_bytes())?.into_owned())
}

/// A document as a `text`.
pub fn to_text(document: &Value) -> Result<Varlena, Error> {
    Varlena::of(&in_database_encoding(document)?)
}
