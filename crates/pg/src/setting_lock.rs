//! A setting whose value is fixed until the transaction ends: `fieldcrypt.tenant` after `lock_tenant`.
//!
//! Postgres has no such thing: SET, RESET and `set_config` change any setting that a role may change at all, and a
//! savepoint takes a setting back with it. So the value is kept here. What reads the setting asks here first; the
//! setting itself is refused any other value, and is brought back to it where Postgres took it away without asking.
//! A parallel worker, which receives settings by value, tells a locked one by its source, which nothing else has.

use std::cell::UnsafeCell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use fieldcrypt_error::Error;
use pgrx::guc::GucSetting;
use pgrx::pg_sys::{self, GucSource};

use super::callbacks::{self, Listener};
use super::setting::Check;
use super::{call, encoding, executor, nodes, report};

/// Bytes that a locked value may have.
const MAX_BYTES: usize = 1024;

/// The source of a locked value: Postgres has it in its list, and sets nothing with it.
const LOCKED_SOURCE: GucSource::Type = GucSource::PGC_S_INTERACTIVE;

/// What a client is told whose encoding may not have the value's characters. Telling it the value would be an error
/// between statements, where Postgres tries again for ever. It begins with a blank, so that a pooler that takes it for
/// the value is refused.
const NOT_TOLD: &CStr = c" (not in the encoding of the client)";

/// Not of the heap or a thread: read on the row path, and let go of where nothing may fail.
struct Place(UnsafeCell<[u8; MAX_BYTES + 1]>);

// SAFETY: a backend has one thread.
unsafe impl Sync for Place {}

static BYTES: Place = Place(UnsafeCell::new([0; MAX_BYTES + 1]));
/// How many of them, without the zero behind them; 0 while nothing is locked.
static LENGTH: AtomicUsize = AtomicUsize::new(0);
/// Whether the setting has the locked value, too.
static HAS_VALUE: AtomicBool = AtomicBool::new(true);
/// Whether it has it from here, so that a parallel worker knows.
static HAS_SOURCE: AtomicBool = AtomicBool::new(true);
static SETTING: OnceLock<Setting> = OnceLock::new();

struct Setting {
    name: &'static CStr,
    value: &'static GucSetting<Option<CString>>,
}

/// Is told of the ends of transactions. One setting can be locked: this one.
pub(super) fn init(name: &'static CStr, value: &'static GucSetting<Option<CString>>) {
    if SETTING.set(Setting { name, value }).is_ok() {
        callbacks::listen(Listener { ended: transaction_ended, ..Listener::DEAF });
    }
}

/// Called where nothing may fail. A parallel worker is there for one query of one transaction, and has transactions
/// of its own before it.
fn transaction_ended() {
    // SAFETY: reads a variable of the process.
    if unsafe { pg_sys::ParallelWorkerNumber } < 0 {
        LENGTH.store(0, Relaxed);
        HAS_VALUE.store(true, Relaxed);
        HAS_SOURCE.store(true, Relaxed);
    }
}

/// The locked value, if there is one. It is good until the transaction ends.
#[inline]
pub fn value<'a>() -> Option<&'a [u8]> {
    match LENGTH.load(Relaxed) {
        0 => None,
        // SAFETY: written by `keep` before the length was, and not again until the transaction ends.
        length => Some(unsafe { &(&*BYTES.0.get())[..length] }),
    }
}

/// Sets the setting until the transaction ends, and refuses any other value until then. A savepoint from before
/// does not end it: who can only add statements to a transaction can go back to any savepoint that it has.
pub fn lock(value: &[u8]) -> Result<(), Error> {
    match self::value() {
        Some(locked) if locked == value => return Ok(()),
        Some(_) => return Err(Error::TenantLocked),
        None => {}
    }
    if value.is_empty() || value.len() > MAX_BYTES {
        return Err(Error::Internal("a value that can't be locked".into()));
    }
    set(value)?;
    keep(value);
    nodes::warn_of_setting();
    Ok(())
}

fn keep(value: &[u8]) {
    // SAFETY: nothing is locked, so nobody holds what is overwritten; `lock` and `check` have looked at the length.
    unsafe {
        let bytes = &mut *BYTES.0.get();
        bytes[..value.len()].copy_from_slice(value);
        bytes[value.len()] = 0;
    }
    LENGTH.store(value.len(), Relaxed);
}

/// Whether nothing is locked, or the setting has the locked value, and from here.
#[inline]
pub fn is_in_step() -> bool {
    HAS_VALUE.load(Relaxed) && HAS_SOURCE.load(Relaxed)
}

/// Brings the setting back to its locked value, where a savepoint has taken it away. Before each statement, and
/// so before a parallel query takes the settings along.
#[cold]
pub fn keep_in_step() -> Result<(), Error> {
    // SAFETY: reads variables of the backend. A parallel query can't have lost the value: it has no savepoints.
    let can_set = unsafe { pg_sys::IsTransactionState() && !pg_sys::IsInParallelMode() };
    match value() {
        Some(value) if can_set => set(value),
        _ => Ok(()),
    }
}

/// As SET LOCAL does it, but with a source of its own. That ranks below SET's: what the session has set goes first.
fn set(value: &[u8]) -> Result<(), Error> {
    let (Some(setting), Ok(value)) = (SETTING.get(), CString::new(value)) else {
        return Err(Error::Internal("a value that can't be locked".into()));
    };
    // For the time between the two calls; `assign` says what is so afterwards.
    HAS_VALUE.store(false, Relaxed);
    for (value, source) in
        [(std::ptr::null(), GucSource::PGC_S_SESSION), (value.as_ptr(), LOCKED_SOURCE)]
    {
        // SAFETY: C strings, of which Postgres makes copies, or NULL for the default.
        unsafe {
            pg_sys::set_config_option(
                setting.name.as_ptr(),
                value,
                pg_sys::GucContext::PGC_USERSET,
                source,
                pg_sys::GucAction::GUC_ACTION_LOCAL,
                true,
                0,
                false,
            );
        }
    }
    HAS_VALUE.store(true, Relaxed);
    HAS_SOURCE.store(true, Relaxed);
    Ok(())
}

/// The check hook: any value is refused in a transaction that has locked another, from where ever in the session it
/// comes. What the configuration file says is for later, and is let through.
pub(super) unsafe extern "C-unwind" fn check<C: Check>(
    new: *mut *mut c_char,
    extra: *mut *mut c_void,
    source: GucSource::Type,
) -> bool {
    // SAFETY: Postgres passes a pointer to a C string or to NULL; the texts are copied into memory of the statement.
    unsafe {
        let bytes = if (*new).is_null() { b"".as_slice() } else { CStr::from_ptr(*new).to_bytes() };
        if source == LOCKED_SOURCE
            && pg_sys::InitializingParallelWorker
            && (1..=MAX_BYTES).contains(&bytes.len())
        {
            keep(bytes);
        }
        let is_refused = match value() {
            Some(locked) if source >= LOCKED_SOURCE => locked != bytes,
            _ => false,
        };
        if is_refused {
            let refusal = Error::TenantLocked.report();
            let copy = |text: &str| match CString::new(text) {
                Ok(text) => pg_sys::pstrdup(text.as_ptr()),
                Err(_) => std::ptr::null_mut(),
            };
            pg_sys::GUC_check_errcode(report::packed(refusal.sqlstate));
            pg_sys::GUC_check_errmsg_string = copy(&refusal.message);
            pg_sys::GUC_check_errhint_string = copy(refusal.hint.as_deref().unwrap_or_default());
            return false;
        }
        if source > LOCKED_SOURCE && value().is_some() {
            // The same value, and from now on somebody else's.
            HAS_SOURCE.store(false, Relaxed);
        }
        let is_valid = super::setting::check::<C>(new, extra, source);
        if is_valid && !bytes.is_empty() && !pg_sys::InitializingParallelWorker {
            if source == GucSource::PGC_S_CLIENT {
                nodes::setting_came_with_the_session();
            } else if source == GucSource::PGC_S_SESSION && pg_sys::IsTransactionState() {
                call::raising(|| {
                    nodes::warn_of_setting();
                    Ok(())
                });
            }
        }
        is_valid
    }
}

/// The assign hook, which hears of what no check hook is asked about: RESET in all its forms, `set_config` to NULL,
/// DISCARD ALL, and values that come back when a function with a SET clause or a savepoint ends.
///
/// It may not fail where a transaction or subtransaction is ending, and does not: then the value is brought back
/// later. Elsewhere an error is an error of the statement that changed the setting.
pub(super) unsafe extern "C-unwind" fn assign(new: *const c_char, _: *mut c_void) {
    let Some(locked) = value() else { return };
    // SAFETY: Postgres passes a C string or NULL; and reads a variable of the backend.
    let (is_locked_one, is_running) = unsafe {
        let is_locked_one = !new.is_null() && CStr::from_ptr(new).to_bytes() == locked;
        (is_locked_one, pg_sys::IsTransactionState())
    };
    if !is_locked_one && HAS_VALUE.load(Relaxed) && is_running {
        call::raising::<()>(|| Err(Error::TenantLocked));
    }
    HAS_VALUE.store(is_locked_one, Relaxed);
    // A value that comes back may be one of before the lock.
    HAS_SOURCE.store(false, Relaxed);
}

/// The show hook: the locked value, whatever became of the setting.
pub(super) unsafe extern "C-unwind" fn show() -> *const c_char {
    let Some(setting) = SETTING.get() else { return c"".as_ptr() };
    // SAFETY: C strings of Postgres's and of this module, which live longer than what is done with them.
    let shown = unsafe {
        match value() {
            Some(_) => (*BYTES.0.get()).as_ptr().cast::<c_char>(),
            None => (*setting.value.as_ptr()).cast_const(),
        }
    };
    if shown.is_null() {
        return c"".as_ptr();
    }
    // Inside a statement it is SQL that asks; between statements the client is told of a change.
    // SAFETY: as above.
    if executor::depth() == 0 && !encoding::is_client_able_to_read(unsafe { CStr::from_ptr(shown) })
    {
        return NOT_TOLD.as_ptr();
    }
    shown
}
