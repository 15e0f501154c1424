//! The edge: SQL functions in, `Result`s inside, errors out.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use fieldcrypt_envelope::KeyId;
use pgrx::pg_sys::{self, Datum};

use super::report;
use super::values;
use crate::audit::failures;
use crate::error::Error;
use crate::redaction;

/// The arguments of a call.
pub struct Call(pg_sys::FunctionCallInfo);

/// What an SQL function does with a call; `None` is NULL.
pub type Body = fn(&Call) -> Result<Option<Datum>, Error>;

impl Call {
    /// An argument, `None` if it is NULL.
    #[inline]
    pub fn datum(&self, index: usize) -> Option<Datum> {
        // SAFETY: Postgres passes a valid call with `nargs` arguments behind it.
        unsafe {
            let nargs = (*self.0).nargs as usize;
            let argument = (*self.0).args.as_slice(nargs).get(index)?;
            (!argument.isnull).then_some(argument.value)
        }
    }

    /// A varlena argument (`text`, `bytea`, `encrypted`): its bytes, detoasted.
    #[inline]
    pub fn bytes(&self, index: usize) -> Option<&[u8]> {
        // SAFETY: the SQL declaration of the function gives this argument a varlena type.
        self.datum(index).map(|datum| unsafe { values::detoasted(datum) })
    }

    /// A `cstring` argument.
    pub fn c_string(&self, index: usize) -> Option<&[u8]> {
        // SAFETY: the SQL declaration of the function gives this argument the type cstring.
        self.datum(index).map(|datum| unsafe {
            std::ffi::CStr::from_ptr(datum.cast_mut_ptr::<std::ffi::c_char>()).to_bytes()
        })
    }

    /// A `name` argument.
    pub fn name(&self, index: usize) -> Option<&[u8]> {
        // SAFETY: the SQL declaration of the function gives this argument the type name, which ends
        // with a zero byte.
        self.datum(index).map(|datum| unsafe {
            let name = datum.cast_mut_ptr::<pg_sys::NameData>();
            std::ffi::CStr::from_ptr((*name).data.as_ptr()).to_bytes()
        })
    }

    /// What is left of a binary message, the argument of a receive function.
    pub fn message_rest(&self, index: usize) -> Option<&[u8]> {
        // SAFETY: the SQL declaration gives this argument the type internal, of which only the
        // protocol code makes values: a StringInfo. All of it is taken, as receive functions must.
        self.datum(index).map(|datum| unsafe {
            let message = &mut *datum.cast_mut_ptr::<pg_sys::StringInfoData>();
            let rest = (message.len - message.cursor).max(0);
            let start = pg_sys::pq_getmsgbytes(message, rest);
            std::slice::from_raw_parts(start.cast::<u8>(), rest as usize)
        })
    }

    /// A `bigint` or `timestamptz` argument.
    pub fn bigint(&self, index: usize) -> Option<i64> {
        self.datum(index).map(|datum| datum.value() as i64)
    }

    /// A `bigint` argument that is the id of a key; `None` also if it can't be one.
    pub fn key_id(&self, index: usize) -> Option<KeyId> {
        self.bigint(index).and_then(KeyId::new)
    }

    /// A `boolean` argument.
    pub fn boolean(&self, index: usize) -> Option<bool> {
        self.datum(index).map(|datum| datum.value() & 1 == 1)
    }

    /// The type that an argument has in this call, for polymorphic functions.
    pub fn argument_type(&self, index: i32) -> pg_sys::Oid {
        // SAFETY: `flinfo` belongs to the call; the function answers InvalidOid if it can't tell.
        unsafe { pg_sys::get_fn_expr_argtype((*self.0).flinfo, index) }
    }

    /// The raw call, for the other files of this folder.
    pub(super) fn raw(&self) -> pg_sys::FunctionCallInfo {
        self.0
    }
}

/// Runs a body and turns its `Result` into what Postgres expects.
///
/// # Safety
///
/// Only Postgres calls it, through a function made by `sql_functions!`.
#[inline]
pub unsafe fn edge(fcinfo: pg_sys::FunctionCallInfo, body: Body) -> Datum {
    redaction::mark_statement();
    // SAFETY: no panic leaves the guard; whatever it would raise is caught inside and comes back as
    // a report.
    let outcome = unsafe { pgrx::pgrx_extern_c_guard(|| caught(|| told(fcinfo, body))) };
    match outcome {
        Ok(Some(datum)) => datum,
        Ok(None) => {
            // SAFETY: Postgres's own call structure.
            unsafe { (*fcinfo).isnull = true };
            Datum::null()
        }
        Err(boxed) => {
            // The box is freed before the jump.
            let report = { *boxed };
            report::raise(report)
        }
    }
}

/// Refusals are recorded.
#[inline]
fn told(fcinfo: pg_sys::FunctionCallInfo, body: Body) -> Result<Option<Datum>, Error> {
    body(&Call(fcinfo)).map_err(|error| {
        // SAFETY: Postgres's own call structure; functions that are called directly have no `flinfo`.
        let function = unsafe { (*fcinfo).flinfo.as_ref() }.map(|info| info.fn_oid);
        failures::called(function.unwrap_or(pg_sys::InvalidOid), error)
    })
}

/// Runs what Postgres calls otherwise, a hook or a callback in which errors are allowed, and raises its
/// error. The caller holds nothing that needs dropping.
pub fn raising(work: fn() -> Result<(), Error>) {
    // SAFETY: as in `edge`.
    let outcome = unsafe { pgrx::pgrx_extern_c_guard(|| caught(work)) };
    if let Err(boxed) = outcome {
        let report = { *boxed };
        report::raise(report)
    }
}

/// Errors of the extension and of Postgres alike, as reports.
#[inline]
fn caught<R>(work: impl FnOnce() -> Result<R, Error>) -> Result<R, Box<report::Report>> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| Box::new(error.report())),
        // Only pgrx can read what its guards panic with.
        Err(panic) => pgrx::PgTryBuilder::new(AssertUnwindSafe(|| resume_unwind(panic)))
            .catch_others(|error| Err(Box::new(report::Report::of(&error))))
            .execute(),
    }
}

/// Defines the C symbols of SQL functions: `symbol, info symbol => body`.
macro_rules! sql_functions {
    ($($symbol:ident, $info:ident => $body:path;)*) => {$(
        #[doc(hidden)]
        #[unsafe(no_mangle)]
        pub extern "C-unwind" fn $info() -> &'static pgrx::pg_sys::Pg_finfo_record {
            const V1: pgrx::pg_sys::Pg_finfo_record = pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
            &V1
        }

        #[doc(hidden)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $symbol(
            fcinfo: pgrx::pg_sys::FunctionCallInfo,
        ) -> pgrx::pg_sys::Datum {
            // SAFETY: Postgres calls this symbol as a version-1 function, with a valid call.
            unsafe { $crate::pg::call::edge(fcinfo, $body) }
        }
    )*};
}
pub(crate) use sql_functions;
