//! Errors and warnings, as Postgres reports them.
//!
//! pgrx's own `ereport!` can't hide the statement and the context of an error, which for this
//! extension would print plaintext into the server log; so these go to `elog.c` directly. That holds
//! for what Postgres itself raises inside the extension's functions too (a lock timeout, a cancel).

use std::ffi::{CStr, CString, c_char, c_int};

use pgrx::PgLogLevel;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;

use super::encoding;
use fieldcrypt_error::{Report, SqlState};

/// A report, ready to be raised where nothing can be converted any more: its texts are in the database's
/// encoding.
pub struct Ready {
    sqlstate: c_int,
    message: CString,
    detail: Option<CString>,
    hint: Option<CString>,
    is_without_context: bool,
}

/// What stands in the place of a file name and a function in errors of the extension. The line is the
/// SQLSTATE, so that it is not lost with pgrx.
const FILE: &CStr = c"pg_fieldcrypt";

impl Ready {
    /// Converts its texts. What the database's encoding can't show is '?'.
    pub fn new(report: &Report) -> Self {
        let c_string = |text: &str| CString::new(in_database_encoding(text)).unwrap_or_default();
        Self {
            sqlstate: packed(report.sqlstate),
            message: c_string(&report.message),
            detail: report.detail.as_deref().map(c_string),
            hint: report.hint.as_deref().map(c_string),
            is_without_context: report.is_without_context,
        }
    }
}

/// Of what Postgres raised, or of a panic.
pub fn of_caught(caught: &CaughtError) -> Report {
    let (CaughtError::PostgresError(report)
    | CaughtError::ErrorReport(report)
    | CaughtError::RustPanic { ereport: report, .. }) = caught;
    // pgrx knows Postgres's own SQLSTATEs only. One of the extension's arrives here from a parallel
    // worker, or from below an SPI call.
    let sqlstate = match report.line_number() as c_int {
        line if line > 0 && report.file().as_bytes() == FILE.to_bytes() => line,
        _ => report.sql_error_code() as c_int,
    };
    Report {
        sqlstate: unpacked(sqlstate),
        message: report.message().to_owned(),
        detail: report.detail().map(str::to_owned),
        hint: report.hint().map(str::to_owned),
        is_without_context: false,
    }
}

/// If the error tells of the system, not of a value (serialization, resources, cancels: classes
/// 40, 53, 55 and 57, on which applications retry), its SQLSTATE with another message.
pub fn of_the_system(caught: &CaughtError, message: &str) -> Option<Report> {
    let report = of_caught(caught);
    let is_known =
        [b"40", b"53", b"55", b"57"].iter().any(|class| report.sqlstate.0.starts_with(*class));
    is_known.then(|| Report { message: message.to_owned(), detail: None, hint: None, ..report })
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
pub fn raise(report: Ready) -> ! {
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
pub fn warn(report: &Report) {
    let report = Ready::new(report);
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
    let report = Ready {
        sqlstate: 0,
        message: CString::new(ascii.replace('\0', " ")).unwrap_or_default(),
        detail: None,
        hint: None,
        is_without_context: false,
    };
    // SAFETY: below ERROR, `errfinish` returns; as for a warning.
    unsafe {
        if start(pg_sys::LOG_SERVER_ONLY as c_int, report) {
            pg_sys::ffi::pg_guard_ffi_boundary(|| finish(0));
        }
    }
}

/// What the `ereport` macro does up to `errfinish`; `false` if nobody wants to see it.
unsafe fn start(level: c_int, report: Ready) -> bool {
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
        if report.is_without_context {
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

/// A text in the database's encoding, for people: what it can't show is '?'.
pub fn in_database_encoding(text: &str) -> Vec<u8> {
    let text = text.replace('\0', " ");
    match encoding::from_utf8(text.as_bytes()) {
        Ok(bytes) => bytes.into_owned(),
        Err(_) => text.chars().map(|c| if c.is_ascii() { c as u8 } else { b'?' }).collect(),
    }
}

/// `MAKE_SQLSTATE` of `elog.h`: six bits a character.
pub(super) fn packed(SqlState(code): SqlState) -> c_int {
    code.iter()
        .rev()
        .fold(0, |packed, byte| (packed << 6) | (c_int::from(byte.wrapping_sub(b'0')) & 0x3F))
}

/// The other way round.
fn unpacked(packed: c_int) -> SqlState {
    SqlState(std::array::from_fn(|place| ((packed >> (6 * place)) & 0x3F) as u8 + b'0'))
}
