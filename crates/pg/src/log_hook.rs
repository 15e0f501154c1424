//! The door to the server log: every line passes here before it is written.
//!
//! Postgres sends one and the same record to the log and then to the client, who must get its own
//! message whole. So a record that is to be masked is written here, with other texts in it and without the
//! client; then it gets its own texts back and goes on to the client alone. `EmitErrorReport` does the
//! writing, to all destinations and in all formats.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::OnceLock;

use fieldcrypt_sql_text::{OutOfMemory, Text, Tokens};
use pgrx::pg_sys::panic::CaughtError;
use pgrx::pg_sys::{self, Oid};

pub use super::statement_begins::Relations;
use super::{call, reserve, statement_begins, version};

/// A record as Postgres is about to write it. Texts are in the database's encoding.
pub struct Line<'r> {
    /// The message.
    pub message: &'r [u8],
    /// The message before values were put in and it was translated.
    pub message_format: Option<&'r [u8]>,
    /// DETAIL for log and client.
    pub detail: Option<&'r [u8]>,
    /// DETAIL for the log alone.
    pub detail_log: Option<&'r [u8]>,
    /// HINT.
    pub hint: Option<&'r [u8]>,
    /// CONTEXT, if it is to be written.
    pub context: Option<&'r [u8]>,
    /// QUERY.
    pub internal_query: Option<&'r [u8]>,
    /// STATEMENT, if it is to be written.
    pub statement: Option<&'r [u8]>,
    /// The client's statement, whether it is to be written or not.
    pub running: &'r [u8],
    /// The same; where none is running, at the end of a portal, the client's last one, as far as it is known.
    pub last: &'r [u8],
    /// Whether `last` may be cut off.
    pub last_is_cut_off: bool,
    /// Whether its level is LOG.
    pub is_log: bool,
    /// The class of its SQLSTATE, the first two characters.
    pub class: [u8; 2],
    /// What the system says of its last failure.
    pub system_error: &'r [u8],
    /// The source file that it comes from.
    pub file: &'r [u8],
    /// Whether it is in another language than English.
    pub is_translated: bool,
    /// Names that it carries: of the table, then others.
    pub names: [&'r [u8]; 5],
}

/// What is to be written instead. Each text ends with a zero byte.
#[derive(Default)]
pub struct Masked {
    /// The message.
    pub message: Option<Text>,
    /// DETAIL.
    pub detail: Option<Text>,
    /// DETAIL for the log alone.
    pub detail_log: Option<Text>,
    /// HINT.
    pub hint: Option<Text>,
    /// CONTEXT.
    pub context: Option<Text>,
    /// QUERY.
    pub internal_query: Option<Text>,
    /// STATEMENT.
    pub statement: Option<Text>,
}

/// Who says what is masked, and how.
pub struct Masker {
    /// Whether lines are looked at at all.
    pub is_on: fn() -> bool,
    /// Whether a line is to be masked.
    pub concerns: fn(&Line<'_>) -> bool,
    /// What is to be written instead.
    pub masked: fn(&Line<'_>) -> Result<Masked, OutOfMemory>,
    /// Whether it is worth looking at a statement that begins: the log asked for that before, or will at the end of
    /// the statement, as it does if the argument says so.
    pub looks: fn(bool) -> bool,
    /// Brings what is known of the catalogs up to date.
    pub refresh: fn(),
    /// Whether a statement that begins is about values: by its text, or the relations of its plan.
    pub is_about_values: fn(&[u8], Relations) -> bool,
    /// A relation changed, or with `None` any may have. Nothing in it can fail.
    pub relation_changed: fn(Option<Oid>),
    /// A constraint changed. Nothing in it can fail.
    pub constraint_changed: fn(),
}

const HIDDEN: &CStr = c"(hidden by fieldcrypt.redact_logs)";

/// Not of the thread: lines are written at the exit of a process, too, when what a thread owns is gone.
static DOMAIN: OnceLock<CString> = OnceLock::new();
static MASKER: OnceLock<Masker> = OnceLock::new();

thread_local! {
    static IS_ACTIVE: Cell<bool> = const { Cell::new(false) };
    static IS_WRITING: Cell<bool> = const { Cell::new(false) };
    static NEXT_LOG: Cell<pg_sys::emit_log_hook_type> = const { Cell::new(None) };
}

/// Takes its place, if the postmaster is loading the library: only then does nothing go past it.
pub fn init(masker: Masker) {
    MASKER.get_or_init(|| masker);
    // SAFETY: hooks are set as Postgres says: keep what was there, and call it. They are functions that
    // live as long as the library.
    unsafe {
        if !pg_sys::process_shared_preload_libraries_in_progress {
            return;
        }
        NEXT_LOG.set(pg_sys::emit_log_hook);
        pg_sys::emit_log_hook = Some(at_log);
    }
    statement_begins::init();
    IS_ACTIVE.set(true);
    let domain = format!("postgres-{}", pg_sys::PG_VERSION_NUM / 10_000);
    DOMAIN.get_or_init(|| CString::new(domain).unwrap_or_default());
}

/// Whether lines pass here. Backends inherit it from the postmaster.
pub fn is_active() -> bool {
    IS_ACTIVE.get()
}

/// Who says what is masked, once it has been told.
pub(super) fn masker() -> Option<&'static Masker> {
    MASKER.get()
}

/// Whether this process serves a client, whose statements are looked at when they begin: of what another does nothing
/// is known.
pub fn serves_a_client() -> bool {
    // SAFETY: reads a variable of the process.
    unsafe { pg_sys::MyBackendType == pg_sys::BackendType::B_BACKEND }
}

/// Whether a session has not begun yet: there was no statement.
pub fn is_starting() -> bool {
    // SAFETY: reads a variable of the process.
    unsafe { pg_sys::Mode != pg_sys::ProcessingMode::NormalProcessing }
}

/// Whether this process has a database, in which values could be.
pub fn has_database() -> bool {
    // SAFETY: reads a variable of the process.
    unsafe { pg_sys::MyDatabaseId != pg_sys::InvalidOid }
}

/// Whether this is a place where catalogs may be read: in a transaction that has not failed.
pub fn may_read_catalogs() -> bool {
    // SAFETY: reads variables of the backend.
    unsafe {
        has_database()
            && pg_sys::IsTransactionState()
            && !pg_sys::IsAbortedTransactionBlockState()
            && pg_sys::CritSectionCount == 0
            && !pg_sys::CurTransactionContext.is_null()
            && !pg_sys::CurrentResourceOwner.is_null()
    }
}

unsafe extern "C-unwind" fn at_log(record: *mut pg_sys::ErrorData) {
    // SAFETY: Postgres passes the record that it is about to write. An error of Postgres's leaves the guard
    // as one.
    unsafe {
        if !IS_WRITING.get()
            && let Some(masker) = MASKER.get()
            && (masker.is_on)()
        {
            call::in_log(|| {
                if without_panic(|| write_masked(masker, record)).is_err() {
                    // Neither shown nor lost.
                    let hidden = Texts::hidden(record);
                    if without_panic(|| write(record, hidden)).is_err() {
                        (*record).output_to_server = false;
                    }
                }
            });
        }
        if (*record).output_to_server
            && let Some(next) = NEXT_LOG.get()
        {
            next(record);
        }
    }
}

/// Runs what may not panic here: the error that a panic becomes would be written to the log as well, and panic
/// again, without end. An error of Postgres's goes on, where anybody is there to take it.
pub(super) fn without_panic(work: impl FnOnce()) -> Result<(), ()> {
    let Err(problem) = catch_unwind(AssertUnwindSafe(work)) else { return Ok(()) };
    // SAFETY: reads a variable of the process.
    let is_taken = unsafe { !pg_sys::PG_exception_stack.is_null() };
    if problem.is::<CaughtError>() && is_taken {
        resume_unwind(problem)
    }
    Err(())
}

/// Writes the record to the log if it needs masking, and leaves it for the client; otherwise leaves it
/// alone.
///
/// # Safety
///
/// The record is the one that Postgres is about to write.
unsafe fn write_masked(masker: &Masker, record: *mut pg_sys::ErrorData) {
    // SAFETY: by the contract; what the line borrows is put back before this ends.
    let line = unsafe { line(record) };
    // One that fails by its syntax need not be one.
    let is_replication =
        is_replication_command(line.running) && line.context.is_none() && line.class != *b"42";
    if is_replication || !(masker.concerns)(&line) {
        return;
    }
    // Not a single byte if anything goes wrong.
    let masked = catch_unwind(AssertUnwindSafe(|| reserve::may_fail(|| (masker.masked)(&line))));
    let masked = masked.unwrap_or(Err(OutOfMemory));
    let texts = match &masked {
        Ok(masked) => Texts::of(masked),
        // SAFETY: by the contract.
        Err(OutOfMemory) => unsafe { Texts::hidden(record) },
    };
    // SAFETY: by the contract; the texts live until the end of this function.
    unsafe { write(record, texts) }
}

/// Commands of the replication protocol are no SQL, and hold names and positions. What they run says so by CONTEXT.
fn is_replication_command(running: &[u8]) -> bool {
    const COMMANDS: [&[u8]; 9] = [
        b"START_REPLICATION",
        b"CREATE_REPLICATION_SLOT",
        b"ALTER_REPLICATION_SLOT",
        b"DROP_REPLICATION_SLOT",
        b"READ_REPLICATION_SLOT",
        b"IDENTIFY_SYSTEM",
        b"TIMELINE_HISTORY",
        b"BASE_BACKUP",
        b"UPLOAD_MANIFEST",
    ];
    // SAFETY: reads a variable of the process.
    let is_sender = unsafe { pg_sys::am_walsender };
    // The first word decides, for the server too.
    let first = Tokens::of(running).next().and_then(|token| running.get(token.range));
    is_sender && first.is_some_and(|first| COMMANDS.contains(&first))
}

/// The texts of a record as Postgres wants them.
#[derive(Clone, Copy)]
struct Texts {
    message: *const c_char,
    detail: *const c_char,
    detail_log: *const c_char,
    hint: *const c_char,
    context: *const c_char,
    internal_query: *const c_char,
    statement: *const c_char,
}

impl Texts {
    fn of(masked: &Masked) -> Self {
        let text = |text: &Option<Text>| match text {
            // `masked` ends each with a zero byte.
            Some(text) => text.as_bytes().as_ptr().cast(),
            None => std::ptr::null(),
        };
        Self {
            message: text(&masked.message),
            detail: text(&masked.detail),
            detail_log: text(&masked.detail_log),
            hint: text(&masked.hint),
            context: text(&masked.context),
            internal_query: text(&masked.internal_query),
            statement: text(&masked.statement),
        }
    }

    /// # Safety
    ///
    /// A valid record.
    unsafe fn hidden(record: *const pg_sys::ErrorData) -> Self {
        let hidden = |text: *const c_char| if text.is_null() { text } else { HIDDEN.as_ptr() };
        // SAFETY: by the contract.
        let own = unsafe { Self::taken_from(record) };
        Self {
            message: HIDDEN.as_ptr(),
            detail: hidden(own.detail),
            detail_log: hidden(own.detail_log),
            hint: std::ptr::null(),
            context: std::ptr::null(),
            internal_query: std::ptr::null(),
            statement: hidden(own.statement),
        }
    }

    /// Of a record, and of the statement that is running.
    unsafe fn taken_from(record: *const pg_sys::ErrorData) -> Self {
        // SAFETY: a valid record.
        unsafe {
            Self {
                message: (*record).message,
                detail: (*record).detail,
                detail_log: (*record).detail_log,
                hint: (*record).hint,
                context: (*record).context,
                internal_query: (*record).internalquery,
                statement: pg_sys::debug_query_string,
            }
        }
    }

    unsafe fn put_into(self, record: *mut pg_sys::ErrorData) {
        // SAFETY: a valid record.
        unsafe {
            (*record).message = self.message.cast_mut();
            (*record).detail = self.detail.cast_mut();
            (*record).detail_log = self.detail_log.cast_mut();
            (*record).hint = self.hint.cast_mut();
            (*record).context = self.context.cast_mut();
            (*record).internalquery = self.internal_query.cast_mut();
            pg_sys::debug_query_string = self.statement;
        }
    }
}

/// Writes the record with these texts, and leaves it with its own, for the client.
///
/// # Safety
///
/// The record is the one that Postgres is about to write, and the texts are C strings or NULL.
unsafe fn write(record: *mut pg_sys::ErrorData, texts: Texts) {
    // SAFETY: by the contract. `EmitErrorReport` writes the record on top of the stack, which is this one;
    // it calls the hook again, for whoever else listens. Should it fail, everything is put back all the
    // same, before the error goes on.
    unsafe {
        let back = PutBack {
            record,
            texts: Texts::taken_from(record),
            to_client: (*record).output_to_client,
        };
        texts.put_into(record);
        (*record).output_to_client = false;
        IS_WRITING.set(true);
        pg_sys::EmitErrorReport();
        drop(back);
        (*record).output_to_server = false;
    }
}

struct PutBack {
    record: *mut pg_sys::ErrorData,
    texts: Texts,
    to_client: bool,
}

impl Drop for PutBack {
    fn drop(&mut self) {
        IS_WRITING.set(false);
        // SAFETY: the record is a place in Postgres's own array, and the texts are what was there.
        unsafe {
            self.texts.put_into(self.record);
            (*self.record).output_to_client = self.to_client;
        }
    }
}

/// What a record holds.
///
/// # Safety
///
/// The record is valid and is not changed while the line is in use.
unsafe fn line<'r>(record: *const pg_sys::ErrorData) -> Line<'r> {
    // SAFETY: by the contract; `shows_statement` only reads.
    unsafe {
        let running = bytes(pg_sys::debug_query_string);
        let reported = reported_statement();
        let shows_statement = version::shows_statement(record);
        let record = &*record;
        let name = |name: *const c_char| bytes(name).unwrap_or_default();
        Line {
            message: name(record.message),
            message_format: bytes(record.message_id),
            detail: bytes(record.detail),
            detail_log: bytes(record.detail_log),
            hint: bytes(record.hint),
            context: bytes(record.context).filter(|_| !record.hide_ctx),
            internal_query: bytes(record.internalquery),
            statement: running.filter(|_| shows_statement),
            running: running.unwrap_or_default(),
            last: running.unwrap_or(reported),
            last_is_cut_off: running.is_none()
                && reported.len() + 1 >= pg_sys::pgstat_track_activity_query_size as usize,
            class: class(record.sqlerrcode),
            system_error: bytes(strerror(record.saved_errno)).unwrap_or_default(),
            is_log: matches!(record.elevel as u32, pg_sys::LOG | pg_sys::LOG_SERVER_ONLY),
            file: name(record.filename),
            is_translated: messages_are_translated(),
            names: [
                name(record.table_name),
                name(record.column_name),
                name(record.constraint_name),
                name(record.datatype_name),
                name(record.schema_name),
            ],
        }
    }
}

/// The client's last statement, as pg_stat_activity has it.
unsafe fn reported_statement<'r>() -> &'r [u8] {
    // SAFETY: the entry of this process, which nobody else writes to; its text is a C string.
    unsafe {
        let entry = pg_sys::MyBEEntry;
        if entry.is_null() { b"" } else { bytes((*entry).st_activity_raw).unwrap_or_default() }
    }
}

/// `MAKE_SQLSTATE` of `elog.h`: six bits a character.
fn class(sqlstate: c_int) -> [u8; 2] {
    std::array::from_fn(|place| ((sqlstate >> (6 * place)) & 0x3F) as u8 + b'0')
}

unsafe extern "C" {
    /// Of the C library: its text, in a place that the next call may write to.
    fn strerror(number: c_int) -> *const c_char;
}

unsafe fn bytes<'r>(text: *const c_char) -> Option<&'r [u8]> {
    // SAFETY: a C string or NULL.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text).to_bytes() })
}

/// Whether messages are in another language than English: asked for one that is in every translation.
fn messages_are_translated() -> bool {
    unsafe extern "C" {
        fn dgettext(domain: *const c_char, text: *const c_char) -> *const c_char;
    }
    const TEXT: &CStr = c"out of memory";
    // SAFETY: a function of the C library that reads two C strings, and answers the second of them if
    // there is no translation.
    DOMAIN
        .get()
        .is_some_and(|domain| unsafe { dgettext(domain.as_ptr(), TEXT.as_ptr()) != TEXT.as_ptr() })
}
