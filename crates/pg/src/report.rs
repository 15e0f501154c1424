//! Errors and warnings, as Postgres reports them.
//!
//! pgrx's own `ereport!` can't hide the statement and the context of an error, which for this
//! extension would print plaintext into the server log; so these go to `elog.c` directly. That holds
//! for what Postgres itself raises inside the extension's functions too (a lock timeout, a cancel).

use std::ffi::{CStr, CString, c_char, c_int};
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::Relaxed;

use pgrx::PgLogLevel;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;

use super::{copy_context, encoding, reserve, version};
use fieldcrypt_error::{Report, SqlState};

/// What stands in the place of a file name and a function in errors of the extension. The line is the
/// SQLSTATE, so that it is not lost with pgrx.
const FILE: &CStr = c"pg_fieldcrypt";

/// A report that waits to be raised, at once. Nothing can be converted or freed any more then, so its texts belong to
/// the process until the next one takes their place.
#[derive(Clone, Copy)]
pub struct Ready {
    /// Whether it was made here, and nothing is left half done by an error of Postgres's.
    is_own: bool,
}

/// Of a text or message that is no encrypted value.
const NOT_ENCRYPTED: SqlState = SqlState(*b"KF001");

/// Null if there was no memory for it.
static RAISED: AtomicPtr<Texts> = AtomicPtr::new(std::ptr::null_mut());

impl Ready {
    /// Converts its texts. What the database's encoding can't show is '?'.
    pub fn new(report: &Report) -> Self {
        Self::keep(Box::into_raw(Box::new(Texts::of(report))))
    }

    /// For an error that itself needs more memory than there is.
    pub fn out_of_memory() -> Self {
        Self::keep(std::ptr::null_mut())
    }

    fn keep(texts: *mut Texts) -> Self {
        let last = RAISED.swap(texts, Relaxed);
        if !last.is_null() {
            // SAFETY: made by `new`, and nobody's but the place's, from which it was taken. Who raised it has jumped.
            drop(unsafe { Box::from_raw(last) });
        }
        Self { is_own: false }
    }

    /// The same, of what a function of the extension answered.
    pub fn as_refusal(self) -> Self {
        Self { is_own: true }
    }

    /// Whether a value is refused, and nothing else is wrong: with the system, the keys or the library.
    pub fn is_refusal(self) -> bool {
        // SAFETY: what is in that place is valid until the next error is made.
        let texts = unsafe { RAISED.load(Relaxed).as_ref() };
        self.is_own && texts.is_some_and(|texts| texts.sqlstate == packed(NOT_ENCRYPTED))
    }

    /// Hands the error to the caller of an input function, who has asked for that, instead of raising it.
    ///
    /// # Safety
    ///
    /// The node is an `ErrorSaveContext`.
    pub unsafe fn save(self, context: *mut pg_sys::Node) {
        // SAFETY: by the contract; the texts are copied. What leaves by `longjmp` is want of memory, and nothing that needs
        // dropping is alive here or in the caller's frame.
        unsafe {
            let Some(texts) = RAISED.load(Relaxed).as_ref() else { return };
            let parts = texts.parts();
            if version::start_saving(context) {
                say(parts);
                version::finish_saving(context, FILE, parts.sqlstate);
            }
        }
    }

    /// Raises the error. Control leaves by `longjmp`, and nothing that needs dropping may be alive in the callers'
    /// frames: only [`super::call`] calls this.
    pub fn raise(self) -> ! {
        const NO_MEMORY: Parts = Parts {
            sqlstate: OUT_OF_MEMORY,
            message: c"out of memory".as_ptr(),
            detail: std::ptr::null(),
            hint: std::ptr::null(),
            is_without_context: false,
        };
        // SAFETY: what is in that place is valid until the next error is made. `errfinish` does not return from an
        // error; this frame, like its caller's, holds nothing that needs dropping.
        unsafe {
            let parts = RAISED.load(Relaxed).as_ref().map_or(NO_MEMORY, Texts::parts);
            if start(PgLogLevel::ERROR as c_int, parts) {
                finish(parts.sqlstate);
            }
        }
        unreachable!("errfinish returned from an error")
    }
}

/// What `elog.c` wants. Owns nothing.
#[derive(Clone, Copy)]
struct Parts {
    sqlstate: c_int,
    message: *const c_char,
    detail: *const c_char,
    hint: *const c_char,
    is_without_context: bool,
}

/// The texts of a report as C strings, in the database's encoding.
struct Texts {
    sqlstate: c_int,
    message: CString,
    detail: Option<CString>,
    hint: Option<CString>,
    is_without_context: bool,
}

impl Texts {
    fn of(report: &Report) -> Self {
        let c_string = |text: &str| CString::new(in_database_encoding(text)).unwrap_or_default();
        Self {
            sqlstate: packed(report.sqlstate),
            message: c_string(&report.message),
            detail: report.detail.as_deref().map(c_string),
            hint: report.hint.as_deref().map(c_string),
            is_without_context: report.is_without_context,
        }
    }

    fn parts(&self) -> Parts {
        let pointer =
            |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
        Parts {
            sqlstate: self.sqlstate,
            message: self.message.as_ptr(),
            detail: pointer(&self.detail),
            hint: pointer(&self.hint),
            is_without_context: self.is_without_context,
        }
    }

    /// Reports what is no error.
    fn tell(&self, level: c_int) {
        let parts = self.parts();
        // SAFETY: the guard turns a `longjmp`, by which a pending cancel and a want of memory leave, into a panic; its
        // closure holds nothing that needs dropping, and the texts outlive it.
        unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                if start(level, parts) {
                    finish(0);
                }
            });
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

/// Warns the client and the server log.
pub fn warn(report: &Report) {
    Texts::of(report).tell(PgLogLevel::WARNING as c_int);
}

/// Writes a line to the server log, and to nobody else. ASCII needs no conversion, so that it may be
/// called where catalogs can't be read.
pub fn log(line: &str) {
    let ascii: String = line.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect();
    let line = Texts {
        sqlstate: 0,
        message: CString::new(ascii.replace('\0', " ")).unwrap_or_default(),
        detail: None,
        hint: None,
        is_without_context: false,
    };
    line.tell(pg_sys::LOG_SERVER_ONLY as c_int);
}

/// Tells the client what was done, and nobody else unless the server logs notices.
pub fn notice(message: String) {
    Texts::of(&Report::new(b"00000", message, "")).tell(PgLogLevel::NOTICE as c_int);
}

/// Writes a report to the server log, and to nobody else.
pub fn log_whole(report: &Report) {
    Texts::of(report).tell(pg_sys::LOG_SERVER_ONLY as c_int);
}

/// Ends the session, since so many bytes were asked for in vain. Called where nothing can be undone, nor any memory be
/// had: by the allocator.
pub fn end_session(bytes: usize) -> ! {
    // SAFETY: `errfinish` ends the process at this level, by `exit`: no frame is left. Callbacks of the context, which
    // may raise an error themselves, are not called. Locks of the caller's would be waited for by callbacks of the exit.
    unsafe {
        unguarded::LWLockReleaseAll();
        pg_sys::error_context_stack = std::ptr::null_mut();
        if errstart(PgLogLevel::FATAL as c_int, std::ptr::null()) {
            errcode(OUT_OF_MEMORY);
            errmsg_internal(c"out of memory".as_ptr());
            errdetail_internal(
                c"pg_fieldcrypt asked the system for %zu bytes in vain.".as_ptr(),
                bytes,
            );
            errhint(c"The session ends, and its transaction is rolled back. Pass smaller values, or give the server more memory.".as_ptr());
            errhidestmt(true);
            errhidecontext(true);
            finish(OUT_OF_MEMORY);
        }
        version::proc_exit(1)
    }
}

pub(super) const OUT_OF_MEMORY: c_int =
    pg_sys::errcodes::PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY as c_int;

mod unguarded {
    unsafe extern "C-unwind" {
        pub fn LWLockReleaseAll();
    }
}

/// What the `ereport` macro does up to `errfinish`; `false` if nobody wants to see it.
///
/// # Safety
///
/// The texts are C strings or NULL. An error may leave by `longjmp`.
unsafe fn start(level: c_int, parts: Parts) -> bool {
    // SAFETY: the sequence that the macro expands to, which copies the texts.
    unsafe {
        if !errstart(level, std::ptr::null()) {
            return false;
        }
        say(parts);
        if level >= PgLogLevel::ERROR as c_int {
            copy_context::tell(parts.is_without_context);
        }
        if parts.is_without_context {
            // What handles the error sets it anew, as for any error.
            pg_sys::error_context_stack = reserve::no_context();
        }
    }
    true
}

/// What an error is, between its start and its end.
///
/// # Safety
///
/// The texts are C strings or NULL. An error may leave by `longjmp`.
unsafe fn say(parts: Parts) {
    const FORMAT: &CStr = c"%s";
    // SAFETY: by the contract.
    unsafe {
        errcode(parts.sqlstate);
        errmsg_internal(FORMAT.as_ptr(), parts.message);
        if !parts.detail.is_null() {
            errdetail_internal(FORMAT.as_ptr(), parts.detail);
        }
        if !parts.hint.is_null() {
            errhint(FORMAT.as_ptr(), parts.hint);
        }
        errhidestmt(true);
        errhidecontext(true);
    }
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
