//! The edge: SQL functions in, `Result`s inside, errors out.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::OnceLock;

use pgrx::pg_sys::{self, Datum};

use super::json::Jsonb;
use super::report::{self, Ready};
use super::{copy_context, marks, reserve, values, version};
use fieldcrypt_error::{Error, Report};

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

    /// A varlena argument: its bytes, detoasted.
    ///
    /// # Safety
    ///
    /// The SQL declaration of the function gives this argument a varlena type; so for the types below.
    #[inline]
    pub(super) unsafe fn bytes(&self, index: usize) -> Option<&[u8]> {
        // SAFETY: by the contract.
        self.datum(index).map(|datum| unsafe { values::detoasted(datum) })
    }

    /// # Safety
    ///
    /// The argument is a `cstring`.
    pub(super) unsafe fn c_string(&self, index: usize) -> Option<&[u8]> {
        // SAFETY: by the contract.
        self.datum(index).map(|datum| unsafe {
            std::ffi::CStr::from_ptr(datum.cast_mut_ptr::<std::ffi::c_char>()).to_bytes()
        })
    }

    /// # Safety
    ///
    /// The argument is a `name`, which ends with a zero byte.
    pub(super) unsafe fn name(&self, index: usize) -> Option<&[u8]> {
        // SAFETY: by the contract.
        self.datum(index).map(|datum| unsafe {
            let name = datum.cast_mut_ptr::<pg_sys::NameData>();
            std::ffi::CStr::from_ptr((*name).data.as_ptr()).to_bytes()
        })
    }

    /// # Safety
    ///
    /// The argument is `internal`, of which only the protocol code makes values: a StringInfo. All of it is
    /// taken, as receive functions must.
    pub(super) unsafe fn message_rest(&self, index: usize) -> Option<&[u8]> {
        // SAFETY: by the contract.
        self.datum(index).map(|datum| unsafe {
            let message = &mut *datum.cast_mut_ptr::<pg_sys::StringInfoData>();
            let rest = (message.len - message.cursor).max(0);
            let start = pg_sys::pq_getmsgbytes(message, rest);
            std::slice::from_raw_parts(start.cast::<u8>(), rest as usize)
        })
    }

    /// The same, a text in the client's encoding, brought to the database's.
    ///
    /// # Safety
    ///
    /// As for [`message_rest`](Self::message_rest).
    pub(super) unsafe fn message_text(&self, index: usize) -> Option<&[u8]> {
        // SAFETY: by the contract; what is given back is as long as it says.
        self.datum(index).map(|datum| unsafe {
            let message = &mut *datum.cast_mut_ptr::<pg_sys::StringInfoData>();
            let mut length = 0;
            let rest = message.len - message.cursor;
            let text = pg_sys::pq_getmsgtext(message, rest, &mut length);
            std::slice::from_raw_parts(text.cast::<u8>(), length.unsigned_abs() as usize)
        })
    }

    /// The first bytes of a varlena argument, so many if it has them.
    ///
    /// # Safety
    ///
    /// The argument is a varlena.
    pub(super) unsafe fn beginning(&self, index: usize, length: usize) -> Option<&[u8]> {
        // SAFETY: by the contract.
        self.datum(index).map(|datum| unsafe { values::beginning(datum, length) })
    }

    /// The type of the value that Postgres itself turns into text for an input function, where it casts by the two; `None`
    /// where there is a text in the first place.
    pub fn cast_from(&self) -> Option<pg_sys::Oid> {
        // SAFETY: the look-up belongs to the call, or is null; its expression is null or a node.
        unsafe {
            let info = (*self.0).flinfo;
            if info.is_null() || (*info).fn_expr.is_null() {
                return None;
            }
            let node = (*info).fn_expr.cast::<pg_sys::Node>();
            ((*node).type_ == pg_sys::NodeTag::T_CoerceViaIO)
                .then(|| pg_sys::exprType((*node.cast::<pg_sys::CoerceViaIO>()).arg.cast()))
        }
    }

    /// # Safety
    ///
    /// The argument is a `text[]`.
    pub(super) unsafe fn texts(&self, index: usize) -> Option<Vec<&[u8]>> {
        // SAFETY: by the contract.
        self.datum(index).map(|datum| unsafe { super::arrays::texts(datum) })
    }

    /// # Safety
    ///
    /// The argument is a `jsonb`.
    pub(super) unsafe fn jsonb(&self, index: usize) -> Option<Jsonb<'_>> {
        // SAFETY: by the contract.
        self.datum(index).map(|datum| unsafe { Jsonb::new(datum) })
    }

    // What stands in the datum itself can be misread, and no more: these are unsafe for the sake of the others.

    pub(super) unsafe fn bigint(&self, index: usize) -> Option<i64> {
        self.datum(index).map(|datum| datum.value() as i64)
    }

    pub(super) unsafe fn integer(&self, index: usize) -> Option<i32> {
        self.datum(index).map(|datum| datum.value() as i32)
    }

    pub(super) unsafe fn boolean(&self, index: usize) -> Option<bool> {
        self.datum(index).map(|datum| datum.value() & 1 == 1)
    }

    pub(super) unsafe fn oid(&self, index: usize) -> Option<pg_sys::Oid> {
        self.datum(index).map(|datum| pg_sys::Oid::from(datum.value() as u32))
    }

    /// The type that an argument has in this call, for polymorphic functions.
    pub fn argument_type(&self, index: usize) -> pg_sys::Oid {
        if let Some(type_oid) = self.type_of_plain_argument(index) {
            return type_oid;
        }
        // SAFETY: `flinfo` belongs to the call; the function answers InvalidOid if it can't tell.
        unsafe { pg_sys::get_fn_expr_argtype((*self.0).flinfo, index as i32) }
    }

    /// The same of an argument that is a column, a constant or a parameter, which takes no call into Postgres: on the row path
    /// pgrx's guard around one would cost more than the look.
    #[inline]
    fn type_of_plain_argument(&self, index: usize) -> Option<pg_sys::Oid> {
        // SAFETY: the look-up belongs to the call, or is null; its expression is null or a node, read as what its tag says
        // it is; a list has as many elements as it says.
        unsafe {
            let call = (*self.0).flinfo.as_ref()?.fn_expr.cast::<pg_sys::Node>();
            if call.is_null() || (*call).type_ != pg_sys::NodeTag::T_FuncExpr {
                return None;
            }
            let arguments = (*call.cast::<pg_sys::FuncExpr>()).args.as_ref()?;
            if index >= usize::try_from(arguments.length).ok()? {
                return None;
            }
            let argument = (*arguments.elements.add(index)).ptr_value.cast::<pg_sys::Node>();
            match (*argument).type_ {
                pg_sys::NodeTag::T_Var => Some((*argument.cast::<pg_sys::Var>()).vartype),
                pg_sys::NodeTag::T_Const => Some((*argument.cast::<pg_sys::Const>()).consttype),
                pg_sys::NodeTag::T_Param => Some((*argument.cast::<pg_sys::Param>()).paramtype),
                _ => None,
            }
        }
    }

    /// How many arguments there are.
    pub(super) fn count(&self) -> usize {
        // SAFETY: Postgres passes a valid call.
        usize::from(unsafe { (*self.0).nargs }.unsigned_abs())
    }

    /// Whether the last argument is an array that was passed for a list, with the word VARIADIC.
    pub(super) fn is_variadic_array(&self) -> bool {
        // SAFETY: `flinfo` belongs to the call; the function answers no if it can't tell.
        unsafe { pg_sys::get_fn_expr_variadic((*self.0).flinfo) }
    }

    /// The raw call, for the other files of this crate.
    pub(super) fn raw(&self) -> pg_sys::FunctionCallInfo {
        self.0
    }
}

/// Is told that a function of the extension gives an error, and says which one is raised.
pub type OnError = fn(pg_sys::Oid, Error) -> Error;

static ON_ERROR: OnceLock<OnError> = OnceLock::new();

/// Registers who is told of errors.
pub fn on_error(told: OnError) {
    ON_ERROR.get_or_init(|| told);
}

/// Runs a body and turns its `Result` into what Postgres expects.
///
/// # Safety
///
/// Only Postgres calls it, through a function made by the macro `sql_functions!`.
#[inline]
pub unsafe fn edge(fcinfo: pg_sys::FunctionCallInfo, body: Body) -> Datum {
    marks::mark();
    if !reserve::has_cushion() {
        ready(|| reserve::OUT_OF_MEMORY.report()).raise();
    }
    match caught(|| told(fcinfo, body)) {
        Ok(Some(datum)) => datum,
        Ok(None) => {
            // SAFETY: Postgres's own call structure.
            unsafe { (*fcinfo).isnull = true };
            Datum::null()
        }
        // SAFETY: Postgres's own call structure.
        Err(error) => unsafe {
            if error.is_refusal() && version::saves_errors(fcinfo) {
                error.save((*fcinfo).context);
                // Who saves errors calls input functions only: the first argument is their text.
                let text = (*fcinfo).args.as_slice((*fcinfo).nargs as usize).first();
                if let Some(text) = text {
                    copy_context::hide(text.value.cast_mut_ptr());
                }
                return Datum::null();
            }
            error.raise()
        },
    }
}

/// Whoever listens is told of errors.
#[inline]
fn told(fcinfo: pg_sys::FunctionCallInfo, body: Body) -> Result<Option<Datum>, Error> {
    body(&Call(fcinfo)).map_err(|error| {
        // SAFETY: Postgres's own call structure; functions that are called directly have no `flinfo`.
        let function = unsafe { (*fcinfo).flinfo.as_ref() }.map(|info| info.fn_oid);
        match ON_ERROR.get() {
            Some(told) => told(function.unwrap_or(pg_sys::InvalidOid), error),
            None => error,
        }
    })
}

/// Runs what Postgres calls otherwise, a hook or a callback in which errors are allowed, and raises its
/// error. The caller holds nothing that needs dropping.
pub fn raising<R>(work: impl FnOnce() -> Result<R, Error>) -> R {
    match caught(work) {
        Ok(result) => result,
        Err(error) => error.raise(),
    }
}

/// The same of what writes a line to the log. Memory out of the reserve did its work there: an error about it would be
/// written, too, by the same reserve, and raise the next, until Postgres has no place left for errors.
pub(super) fn in_log(work: impl FnOnce()) {
    let was_short = reserve::is_short();
    let outcome = reserve::with_cushion_in_log(|| catch_unwind(AssertUnwindSafe(work)));
    if !was_short {
        reserve::forget_shortage();
    }
    if let Err(panic) = outcome {
        ready(move || of_panic(panic)).raise();
    }
}

/// The same of a hook that refuses: whoever listens is told, as of the errors of functions.
pub fn raising_told(work: impl FnOnce() -> Result<(), Error>) {
    raising(|| {
        work().map_err(|error| match ON_ERROR.get() {
            Some(told) => told(pg_sys::InvalidOid, error),
            None => error,
        })
    });
}

/// Errors of the extension and of Postgres alike, ready to be raised. No panic leaves this, and by then nothing of
/// what was made in `work` is left but its result.
#[inline]
fn caught<R>(work: impl FnOnce() -> Result<R, Error>) -> Result<R, Ready> {
    match reserve::with_cushion(|| catch_unwind(AssertUnwindSafe(work))) {
        Ok(Ok(result)) if !reserve::is_short() => Ok(result),
        Ok(Ok(_)) => Err(ready(|| reserve::OUT_OF_MEMORY.report())),
        Ok(Err(error)) => Err(ready(move || error.report()).as_refusal()),
        Err(panic) => Err(ready(move || of_panic(panic))),
    }
}

#[cold]
fn ready(report: impl FnOnce() -> Report) -> Ready {
    catch_unwind(AssertUnwindSafe(|| Ready::new(&report())))
        .unwrap_or_else(|_| Ready::out_of_memory())
}

/// Only pgrx can read what its guards panic with.
fn of_panic(panic: Box<dyn Any + Send>) -> Report {
    pgrx::PgTryBuilder::new(AssertUnwindSafe(|| resume_unwind(panic)))
        .catch_others(|error| report::of_caught(&error))
        .execute()
}

/// Panics are told of as the errors that they become. What the standard library and pgrx do besides with a panic costs
/// much where `RUST_BACKTRACE` is set, takes locks, and shows the insides of the library to clients.
pub fn silence_panics() {
    std::panic::set_hook(Box::new(|_| ()));
}
