//! Errors and warnings, as Postgres reports them.
//!
//! pgrx's own `ereport!` can't hide the statement and the context of an error, which for this
//! extension would print plaintext into the server log; so these go to `elog.c` directly. That holds
//! for what Postgres itself raises inside the extension's functions too (a lock timeout, a cancel).

use std::ffi::{CStr, CString, c_char, c_int};

use pgrx::PgLogLevel;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;

use super::{encoding, session};
use crate::error::Error;

/// What a user reads about an error: never a key, never a plaintext. Ready to be raised: its texts are
/// in the database's encoding.
#[derive(Debug)]
pub struct Report {
    sqlstate: c_int,
    message: CString,
    detail: Option<CString>,
    hint: Option<CString>,
    without_context: bool,
}

/// What stands in the place of a file name and a function in errors of the extension. The line is the
/// SQLSTATE, so that it is not lost with pgrx.
const FILE: &CStr = c"pg_fieldcrypt";

impl Report {
    /// Of an error of the extension's own. The SQLSTATE is five characters, see `docs/errors.md`; the
    /// message is one sentence, lower case, no full stop; the hint says what to do, '' is none.
    pub fn new(sqlstate: &[u8; 5], message: String, hint: &str) -> Self {
        Self {
            sqlstate: packed(sqlstate),
            message: c_string(&message),
            detail: None,
            hint: (!hint.is_empty()).then(|| c_string(hint)),
            without_context: false,
        }
    }

    /// Of what Postgres raised, or of a panic.
    pub fn of(caught: &CaughtError) -> Self {
        let (CaughtError::PostgresError(report)
        | CaughtError::ErrorReport(report)
        | CaughtError::RustPanic { ereport: report, .. }) = caught;
        // pgrx knows Postgres's own SQLSTATEs only. One of the extension's arrives here from a parallel
        // worker, or from below an SPI call.
        let sqlstate = match report.line_number() as c_int {
            line if line > 0 && report.file().as_bytes() == FILE.to_bytes() => line,
            _ => report.sql_error_code() as c_int,
        };
        Self {
            sqlstate,
            message: c_string(report.message()),
            detail: report.detail().map(c_string),
            hint: report.hint().map(c_string),
            without_context: false,
        }
    }

    /// If the error tells of the system, not of a value (serialization, resources, cancels: classes
    /// 40, 53, 55 and 57, on which applications retry), its SQLSTATE with another message.
    pub fn of_the_system(caught: &CaughtError, message: &str) -> Option<Self> {
        const CLASS: c_int = 0xFFF;
        let report = Self::of(caught);
        let is_known = [b"40000", b"53000", b"55000", b"57000"]
            .iter()
            .any(|class| packed(class) & CLASS == report.sqlstate & CLASS);
        is_known.then(|| Self { message: c_string(message), detail: None, hint: None, ..report })
    }

    /// The same, without CONTEXT, QUERY and position. A literal that is refused while a statement is
    /// parsed has a position, and inside PL/pgSQL that makes Postgres log the statement as QUERY.
    pub fn without_context(mut self) -> Self {
        self.without_context = true;
        self
    }

    /// The same, with this before the message.
    pub fn prefixed(mut self, prefix: &str) -> Self {
        self.message =
            CString::new([prefix.as_bytes(), self.message.to_bytes()].concat()).unwrap_or_default();
        self
    }

    /// The SQLSTATE.
    pub fn code(&self) -> String {
        (0..5).map(|place| (((self.sqlstate >> (6 * place)) & 0x3F) as u8 + b'0') as char).collect()
    }

    /// The message in the database's encoding.
    pub fn message_bytes(&self) -> &[u8] {
        self.message.to_bytes()
    }

    /// The message as a Rust string.
    pub fn message(&self) -> String {
        encoding::lossy(self.message.to_bytes())
    }
}

/// Runs `work`, whose errors in code of a table's owner come out as ones that an EXCEPTION block with
/// WHEN OTHERS catches: an owner can raise `query_canceled` or `assert_failure`, which it does not, and
/// with that would end what concerns others too. A cancel of Postgres's own stays one.
pub fn catchable<R>(work: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
    pgrx::PgTryBuilder::new(std::panic::AssertUnwindSafe(work))
        .catch_others(|caught| {
            let report = Report::of(&caught);
            let is_cancel = report.sqlstate == packed(b"57014");
            let is_real_cancel = is_cancel
                && matches!(&caught, CaughtError::PostgresError(error) if error.file().ends_with("postgres.c"));
            let escapes = is_cancel || report.sqlstate == packed(b"P0004");
            if !session::failed_in_owners_code() || !escapes || is_real_cancel {
                caught.rethrow();
            }
            Err(Error::Postgres(Box::new(Report { sqlstate: packed(b"P0001"), ..report })))
        })
        .execute()
}

unsafe extern "C-unwind" {
    fn errstart(level: c_int, domain: *const c_char) -> bool;
    fn errcode(sqlstate: c_int) -> c_int;
    fn errmsg_internal(format: *const c_char, ...) -> c_int;
    fn errdetail_internal(format: *const c_char, ...) -> c_int;
    fn errhint(format: *const c_char, ...) -> c_int;
    fn errhidestmt(hide: bool) -> c_int;
    fn errhidecontext(hide: bool) -> c_int;
    fn errfinish(file: *const c_char, line: c_int, function: *const c_char);
}

/// Raises the error. Control leaves by `longjmp`, so nothing with a destructor may be alive in the
/// callers' frames: only the edge in [`super::call`] calls this.
pub fn raise(report: Report) -> ! {
    let line = report.sqlstate;
    // SAFETY: `errfinish` does not return from an error, and this frame, like its caller's, holds
    // nothing that needs dropping by then: `start` consumed the report.
    unsafe {
        if start(PgLogLevel::ERROR as c_int, report) {
            finish(line);
        }
    }
    unreachable!("errfinish returned from an error")
}

/// Warns the client and the server log.
pub fn warn(report: Report) {
    // SAFETY: the guard turns a `longjmp` out of `errfinish`, which lets a pending cancel through,
    // into a panic; its closure holds nothing that needs dropping.
    unsafe {
        if start(PgLogLevel::WARNING as c_int, report) {
            pg_sys::ffi::pg_guard_ffi_boundary(|| finish(0));
        }
    }
}

/// Writes a line to the server log, and to nobody else. ASCII needs no conversion, so that it may be
/// called where catalogs can't be read.
pub fn log(line: &str) {
    let ascii: String = line.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect();
    let report = Report {
        sqlstate: 0,
        message: CString::new(ascii.replace('\0', " ")).unwrap_or_default(),
        detail: None,
        hint: None,
        without_context: false,
    };
    // SAFETY: below ERROR, `errfinish` returns; as for a warning.
    unsafe {
        if start(pg_sys::LOG_SERVER_ONLY as c_int, report) {
            pg_sys::ffi::pg_guard_ffi_boundary(|| finish(0));
        }
    }
}

/// What the `ereport` macro does up to `errfinish`; `false` if nobody wants to see it.
unsafe fn start(level: c_int, report: Report) -> bool {
    const FORMAT: &CStr = c"%s";
    // SAFETY: the sequence that the macro expands to. The strings are copied, and dropped here.
    unsafe {
        if !errstart(level, std::ptr::null()) {
            return false;
        }
        errcode(report.sqlstate);
        errmsg_internal(FORMAT.as_ptr(), report.message.as_ptr());
        if let Some(detail) = &report.detail {
            errdetail_internal(FORMAT.as_ptr(), detail.as_ptr());
        }
        if let Some(hint) = &report.hint {
            errhint(FORMAT.as_ptr(), hint.as_ptr());
        }
        errhidestmt(true);
        errhidecontext(true);
        if report.without_context {
            // What handles the error sets it anew, as for any error.
            pg_sys::error_context_stack = std::ptr::null_mut();
        }
    }
    true
}

unsafe fn finish(line: c_int) {
    // SAFETY: called after `start` answered `true`.
    unsafe { errfinish(FILE.as_ptr(), line, FILE.as_ptr()) }
}

/// In the database's encoding, what it can't show as '?'.
fn c_string(text: &str) -> CString {
    let text = text.replace('\0', " ");
    let bytes = match encoding::from_utf8(text.as_bytes()) {
        Ok(bytes) => bytes.into_owned(),
        Err(_) => text.chars().map(|c| if c.is_ascii() { c as u8 } else { b'?' }).collect(),
    };
    CString::new(bytes).unwrap_or_default()
}

/// `MAKE_SQLSTATE` of `elog.h`: six bits a character.
fn packed(code: &[u8; 5]) -> c_int {
    code.iter()
        .rev()
        .fold(0, |packed, byte| (packed << 6) | (c_int::from(byte.wrapping_sub(b'0')) & 0x3F))
}
