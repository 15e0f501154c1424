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

    /// A copy that no memory context takes along.
    pub fn to_owned(self) -> Result<OwnedJsonb, Error> {
        // SAFETY: a jsonb, which may be compressed or stored elsewhere until it is detoasted; its size stands in
        // it. The copy has room for that, and the alignment of a varlena.
        unsafe {
            let plain = pg_sys::pg_detoast_datum(self.0.cast_mut_ptr::<pg_sys::varlena>());
            let size = pgrx::varlena::varsize_any(plain);
            let mut copy: Vec<u64> = Vec::new();
            super::reserve::may_fail(|| copy.try_reserve_exact(size.div_ceil(8)))
                .map_err(|_| Error::OutOfMemory { what: "a row's values" })?;
            copy.resize(size.div_ceil(8), 0);
            std::ptr::copy_nonoverlapping(plain.cast::<u8>(), copy.as_mut_ptr().cast::<u8>(), size);
            Ok(OwnedJsonb(copy))
        }
    }

    /// An object of these members, in the current memory context. Names and texts are in the database's
    /// encoding, names in the order that `jsonb` gives them.
    pub fn object(members: &[(&[u8], Scalar)]) -> Self {
        use pg_sys::JsonbIteratorToken::{WJB_BEGIN_OBJECT, WJB_END_OBJECT, WJB_KEY, WJB_VALUE};
        use pg_sys::jbvType::{jbvNumeric, jbvString};
        let string = |text: &[u8]| pg_sys::JsonbValue {
            type_: jbvString,
            val: pg_sys::JsonbValue__bindgen_ty_1 {
                string: pg_sys::JsonbValue__bindgen_ty_1__bindgen_ty_1 {
                    len: text.len() as i32,
                    val: text.as_ptr().cast_mut().cast(),
                },
            },
        };
        // SAFETY: what the parser of jsonb does for an object: each name is followed by its value, and both are
        // copied. The guard's closure holds nothing that needs dropping.
        let document = unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                let mut state = std::ptr::null_mut();
                unguarded::pushJsonbValue(&mut state, WJB_BEGIN_OBJECT, std::ptr::null_mut());
                for (name, value) in members {
                    unguarded::pushJsonbValue(&mut state, WJB_KEY, &mut string(name));
                    let mut value = match value {
                        Scalar::Text(text) => string(text),
                        Scalar::Integer(number) => pg_sys::JsonbValue {
                            type_: jbvNumeric,
                            val: pg_sys::JsonbValue__bindgen_ty_1 {
                                numeric: unguarded::int64_to_numeric(*number),
                            },
                        },
                    };
                    unguarded::pushJsonbValue(&mut state, WJB_VALUE, &mut value);
                }
                let object =
                    unguarded::pushJsonbValue(&mut state, WJB_END_OBJECT, std::ptr::null_mut());
                unguarded::JsonbValueToJsonb(object)
            })
        };
        Self(Datum::from(document), PhantomData)
    }
}

/// What a member of an object is.
pub enum Scalar {
    /// A number.
    Integer(i64),
    /// A text.
    Text(Vec<u8>),
}

/// A value of type `jsonb` in memory of Rust's.
pub struct OwnedJsonb(Vec<u64>);

impl OwnedJsonb {
    /// The value.
    pub fn borrow(&self) -> Jsonb<'_> {
        Jsonb(Datum::from(self.0.as_ptr()), PhantomData)
    }
}

/// What is called for each member, inside a guard.
mod unguarded {
    use pgrx::pg_sys;

    unsafe extern "C-unwind" {
        pub fn pushJsonbValue(
            state: *mut *mut pg_sys::JsonbParseState,
            token: pg_sys::JsonbIteratorToken::Type,
            value: *mut pg_sys::JsonbValue,
        ) -> *mut pg_sys::JsonbValue;
        pub fn int64_to_numeric(value: i64) -> pg_sys::Numeric;
        pub fn JsonbValueToJsonb(value: *mut pg_sys::JsonbValue) -> *mut pg_sys::Jsonb;
    }
}

/// A document in the database's encoding.
pub fn in_database_encoding(document: &Value) -> Result<Vec<u8>, Error> {
    Ok(encoding::from_utf8(document.to_string().as_bytes())?.into_owned())
}

/// Names as an array, in the database's encoding.
pub fn of_names(names: &[&[u8]]) -> Result<Vec<u8>, Error> {
    in_database_encoding(&names.iter().map(|name| encoding::lossy(name)).collect())
}

/// A document as a `text`.
pub fn to_text(document: &Value) -> Result<Varlena, Error> {
    Varlena::of(&in_database_encoding(document)?)
}
