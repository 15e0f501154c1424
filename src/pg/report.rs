//! Errors and warnings, as Postgres reports them.
//!
//! pgrx's own `ereport!` can't hide the statement and the context of an error, which for this
//! extension would print plaintext into the server log; so these go to `elog.c` directly.

use std::ffi::{CStr, CString, c_char, c_int};

use pgrx::PgLogLevel;

/// What a user reads about an error: never a key, never a plaintext.
pub struct Report {
    /// Five characters, see `docs/errors.md`.
    pub sqlstate: &'static [u8; 5],
    /// One sentence, lower case, no full stop.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// Keeps Rust's backtraces, which pgrx puts into the DETAIL of errors that it passes on, away from
/// clients of a server that was started with RUST_BACKTRACE set.
pub fn init() {
    const VARIABLE: &str = "RUST_LIB_BACKTRACE";
    let before = std::env::var_os(VARIABLE);
    // SAFETY: Postgres has one thread. The variable is as it was afterwards: the standard library
    // reads it once, at the capture in between.
    unsafe {
        std::env::set_var(VARIABLE, "0");
        drop(std::backtrace::Backtrace::capture());
        match before {
            Some(value) => std::env::set_var(VARIABLE, value),
            None => std::env::remove_var(VARIABLE),
        }
    }
}

unsafe extern "C-unwind" {
    fn errstart(level: c_int, domain: *const c_char) -> bool;
    fn errcode(sqlstate: c_int) -> c_int;
    fn errmsg_internal(format: *const c_char, ...) -> c_int;
    fn errhint(format: *const c_char, ...) -> c_int;
    fn errhidestmt(hide: bool) -> c_int;
    fn errhidecontext(hide: bool) -> c_int;
    fn errfinish(file: *const c_char, line: c_int, function: *const c_char);
}

/// Raises the error. Control leaves by `longjmp`, so nothing with a destructor may be alive in the
/// callers' frames: only the edge in [`super::call`] calls this.
pub fn raise(report: Report) -> ! {
    emit(PgLogLevel::ERROR as c_int, report);
    unreachable!("errfinish returned from an error")
}

/// Warns the client and the server log.
pub fn warn(report: Report) {
    emit(PgLogLevel::WARNING as c_int, report);
}

fn emit(level: c_int, report: Report) {
    const FORMAT: &CStr = c"%s";
    // SAFETY: the sequence that the `ereport` macro expands to. `errmsg_internal` and `errhint` copy
    // their arguments, so the strings are freed before `errfinish`, which for an error does not
    // return: no frame that it jumps over holds a destructor.
    unsafe {
        if errstart(level, std::ptr::null()) {
            errcode(sqlstate(report.sqlstate));
            let message = c_string(report.message);
            errmsg_internal(FORMAT.as_ptr(), message.as_ptr());
            drop(message);
            if report.hint.is_empty() {
                drop(report.hint);
            } else {
                let hint = c_string(report.hint);
                errhint(FORMAT.as_ptr(), hint.as_ptr());
                drop(hint);
            }
            errhidestmt(true);
            errhidecontext(true);
            errfinish(c"pg_fieldcrypt".as_ptr(), 0, c"pg_fieldcrypt".as_ptr());
        }
    }
}

fn c_string(text: String) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

/// `MAKE_SQLSTATE` of `elog.h`: six bits a character.
fn sqlstate(code: &[u8; 5]) -> c_int {
    code.iter()
        .rev()
        .fold(0, |packed, byte| (packed << 6) | (c_int::from(byte.wrapping_sub(b'0')) & 0x3F))
}
