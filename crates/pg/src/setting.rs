//! Settings: defined with checks, read where every nanosecond counts or before they are defined, and changed
//! for a while.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use pgrx::guc::{GucContext, GucEnum, GucFlags, GucRegistry, GucSetting};
use pgrx::pg_sys::{self, GucSource};

use super::{setting_lock, shared_memory, version};

/// Names settings that are numbers once: where Postgres keeps each, with the reason why it exists, its default, its
/// least and its highest value, its unit and who may set it; its name, one sentence, and what else there is to know.
/// `define_numbers` defines them.
#[macro_export]
macro_rules! numbers {
    ($($(#[$why:meta])* $place:ident = $default:expr, $least:expr, $most:expr, $unit:expr, $context:expr,
        $name:expr, $about:expr, $details:expr;)*) => {
        $($(#[$why])*
        static $place: pgrx::guc::GucSetting<i32> = pgrx::guc::GucSetting::<i32>::new($default);)*

        fn define_numbers() {
            $(pgrx::guc::GucRegistry::define_int_guc(
                $name, $about, $details, &$place, $least, $most, $context, $unit,
            );)*
        }
    };
}

/// A setting that is a text.
pub struct Text {
    /// Its name.
    pub name: &'static CStr,
    /// One sentence.
    pub about: &'static CStr,
    /// What else there is to know.
    pub details: &'static CStr,
    /// Where Postgres keeps it.
    pub value: &'static GucSetting<Option<CString>>,
    /// Who may set it.
    pub context: GucContext,
}

/// A setting that is on or off and that refuses something: the superuser's.
pub struct Switch {
    /// Its name.
    pub name: &'static CStr,
    /// One sentence.
    pub about: &'static CStr,
    /// What else there is to know.
    pub details: &'static CStr,
    /// Where Postgres keeps it. What it is made with is what counts where nobody has set it.
    pub value: &'static GucSetting<bool>,
    /// The value that refuses.
    pub strict: bool,
}

/// Defines a switch. Where somebody has set it before the library was loaded, it is strict unless that was somebody
/// who may set it: a client's PGOPTIONS leave the configuration file's value aside, and are refused only now.
pub fn define_switch(switch: Switch) {
    let Switch { name, about, details, value, strict } = switch;
    if is_placeholder(name) {
        // SAFETY: a plain variable, which Postgres takes over as the default; backends have one thread.
        unsafe { *value.as_ptr() = strict };
    }
    let (context, flags) = (GucContext::Suset, GucFlags::default());
    GucRegistry::define_bool_guc(name, about, details, value, context, flags);
}

/// Defines a switch that only the session itself can turn on: what a file, a role or a database has would be forgotten
/// there.
pub fn define_switch_of_session(switch: Switch) {
    let Switch { name, about, details, value, .. } = switch;
    let (context, flags) = (GucContext::Suset, GucFlags::default());
    // SAFETY: the hook is a C function that lives as long as the library, and raises nothing, or as C does.
    unsafe {
        GucRegistry::define_bool_guc_with_hooks(
            name,
            about,
            details,
            value,
            context,
            flags,
            Some(check_of_session),
            None,
            None,
        );
    }
}

unsafe extern "C-unwind" fn check_of_session(
    value: *mut bool,
    _: *mut *mut c_void,
    source: GucSource::Type,
) -> bool {
    // SAFETY: Postgres passes a pointer to the value, and takes a text of its own memory for the detail.
    unsafe {
        let is_of_session = matches!(
            source,
            GucSource::PGC_S_CLIENT | GucSource::PGC_S_INTERACTIVE | GucSource::PGC_S_SESSION
        );
        let is_allowed = !*value || is_of_session;
        if !is_allowed {
            pg_sys::GUC_check_errdetail_string = pg_sys::pstrdup(
                c"It is turned on in a session only, for what is to be done there.".as_ptr(),
            );
        }
        is_allowed
    }
}

/// A setting that is a number and that has something recorded, the more the higher it is; the superuser's.
pub struct Amount {
    /// Its name.
    pub name: &'static CStr,
    /// One sentence.
    pub about: &'static CStr,
    /// What else there is to know.
    pub details: &'static CStr,
    /// Where Postgres keeps it. What it is made with is what counts where nobody has set it.
    pub value: &'static GucSetting<i32>,
}

/// Defines an amount, from 0 on. As [`define_switch`]: where it can't be told who set it, as much as can be.
pub fn define_amount(amount: Amount) {
    let Amount { name, about, details, value } = amount;
    if is_placeholder(name) {
        // SAFETY: a plain variable, which Postgres takes over as the default; backends have one thread.
        unsafe { *value.as_ptr() = i32::MAX };
    }
    let (context, flags) = (GucContext::Suset, GucFlags::default());
    GucRegistry::define_int_guc(name, about, details, value, 0, i32::MAX, context, flags);
}

/// A setting that refuses more or less, by words; the superuser's.
pub struct Grades {
    /// Its name.
    pub name: &'static CStr,
    /// One sentence.
    pub about: &'static CStr,
    /// What else there is to know.
    pub details: &'static CStr,
    /// Where Postgres keeps the number of the word. What it is made with is what counts where nobody has set it.
    pub value: &'static GucSetting<i32>,
    /// The words that it may be, with their numbers, after which nothing comes.
    pub words: &'static Words,
    /// The number of the strictest.
    pub strictest: i32,
}

/// Words and their numbers. Of several with one number, the first is shown.
pub struct Words([pg_sys::config_enum_entry; 10]);

// SAFETY: static C strings that nobody writes to.
unsafe impl Sync for Words {}

impl Words {
    /// Off, on and one more, with the other words that Postgres has for the first two.
    pub const fn off_on_and(more: &'static CStr) -> Self {
        const fn word(name: &'static CStr, val: i32, hidden: bool) -> pg_sys::config_enum_entry {
            pg_sys::config_enum_entry { name: name.as_ptr(), val, hidden }
        }
        let end = pg_sys::config_enum_entry { name: std::ptr::null(), val: 0, hidden: false };
        Self([
            word(c"off", 0, false),
            word(c"on", 1, false),
            word(more, 2, false),
            word(c"false", 0, true),
            word(c"true", 1, true),
            word(c"no", 0, true),
            word(c"yes", 1, true),
            word(c"0", 0, true),
            word(c"1", 1, true),
            end,
        ])
    }
}

/// Defines grades, as [`define_switch`] a switch.
pub fn define_grades(grades: Grades) {
    let Grades { name, about, details, value, words, strictest } = grades;
    // SAFETY: static C strings, a static list that ends as Postgres has it, and a plain variable; one thread.
    unsafe {
        let usual = if is_placeholder(name) { strictest } else { *value.as_ptr() };
        pg_sys::DefineCustomEnumVariable(
            name.as_ptr(),
            about.as_ptr(),
            details.as_ptr(),
            value.as_ptr(),
            usual,
            words.0.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            0,
            None,
            None,
            None,
        );
    }
}

/// The number of a grade.
#[inline]
pub fn grade(setting: &'static GucSetting<i32>) -> i32 {
    // SAFETY: a plain variable that Postgres writes to; backends have one thread.
    unsafe { *setting.as_ptr() }
}

/// Whether a switch is on.
#[inline]
pub fn is_on(setting: &'static GucSetting<bool>) -> bool {
    // SAFETY: a plain variable that Postgres writes to; backends have one thread.
    unsafe { *setting.as_ptr() }
}

/// What a value may be.
pub trait Check {
    /// What a value must be, as DETAIL.
    const DETAIL: &'static CStr;

    /// Whether this is one.
    fn is_valid(value: &[u8]) -> bool;
}

/// Defines a text that is checked.
pub fn define_checked<C: Check>(text: Text) {
    define(text, GucFlags::default(), Some(check::<C>), None, None);
}

/// The same of a text of which somebody is told that it is about to change.
pub fn define_watched<C: Check>(text: Text, watch: Watch) {
    define(text, GucFlags::default(), Some(check::<C>), Some(watch), None);
}

/// Is told. Nothing may fail in it.
pub type Watch = unsafe extern "C-unwind" fn(*const c_char, *mut c_void);

/// The same of the text that can be locked ([`setting_lock`]) and that clients and poolers are told of.
pub fn define_lockable<C: Check>(text: Text) {
    setting_lock::init(text.name, text.value);
    let check = setting_lock::check::<C>;
    define(
        text,
        GucFlags::REPORT,
        Some(check),
        Some(setting_lock::assign),
        Some(setting_lock::show),
    );
}

fn define(
    text: Text,
    flags: GucFlags,
    check: pg_sys::GucStringCheckHook,
    assign: pg_sys::GucStringAssignHook,
    show: pg_sys::GucShowHook,
) {
    let Text { name, about, details, value, context } = text;
    // SAFETY: the hooks are C functions that live as long as the library; they raise nothing, or as C does.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            name, about, details, value, context, flags, check, assign, show,
        );
    }
}

pub(super) unsafe extern "C-unwind" fn check<C: Check>(
    value: *mut *mut c_char,
    _: *mut *mut c_void,
    _: GucSource::Type,
) -> bool {
    // SAFETY: Postgres passes a pointer to a C string or to NULL.
    unsafe {
        let is_valid = (*value).is_null() || C::is_valid(CStr::from_ptr(*value).to_bytes());
        if !is_valid {
            pg_sys::GUC_check_errdetail_string = pg_sys::pstrdup(C::DETAIL.as_ptr());
        }
        is_valid
    }
}

/// A text that is never shown.
pub trait Secret {
    /// Whether there is anything to hide.
    fn is_set() -> bool;
}

/// Defines a text that is never shown. For the postmaster alone: in a session it would have been a placeholder
/// until now, which every role can read (see [`is_placeholder`]).
pub fn define_secret<S: Secret>(text: Text) {
    let flags = GucFlags::SUPERUSER_ONLY | GucFlags::DISALLOW_IN_AUTO_FILE | GucFlags::NO_SHOW_ALL;
    define(text, flags, None, None, Some(show_masked::<S>));
}

unsafe extern "C-unwind" fn show_masked<S: Secret>() -> *const c_char {
    if S::is_set() { c"********".as_ptr() } else { c"".as_ptr() }
}

/// The value of a text, `None` if it is empty.
///
/// The bytes are Postgres's and change with the setting: use them before anything else runs.
#[inline]
pub fn text<'a>(setting: &GucSetting<Option<CString>>) -> Option<&'a [u8]> {
    // SAFETY: Postgres keeps a valid C string, or NULL, in the variable; backends have one thread.
    unsafe {
        let value = *setting.as_ptr();
        if value.is_null() || *value == 0 { None } else { Some(CStr::from_ptr(value).to_bytes()) }
    }
}

/// The place of a setting's value among those it may have.
#[inline]
pub fn ordinal<T: GucEnum>(setting: &'static GucSetting<T>) -> i32 {
    // SAFETY: a plain variable that Postgres writes to; backends have one thread.
    unsafe { *setting.as_ptr() }
}

/// Whether somebody has set what the library, which is not preloaded, is about to define. What was set and is no more,
/// as when its line is gone from the configuration file, is not.
pub fn is_placeholder(name: &'static CStr) -> bool {
    !shared_memory::is_preloading() && version::is_set(name)
}

/// Who sets what the server is started with: a setting of the postmaster's can be defined by it alone. Without
/// preload such a setting has no use.
pub fn at_start() -> GucContext {
    if shared_memory::is_preloading() { GucContext::Postmaster } else { GucContext::Sighup }
}

/// Runs `work`, which concerns this process alone, as if no parallel query were under way.
pub fn outside_parallel_mode(work: impl FnOnce()) {
    let mut levels = 0;
    // SAFETY: as many levels are entered again as were left. If `work` raises an error the
    // transaction is over, and its parallel mode with it.
    unsafe {
        while pg_sys::IsTransactionState() && pg_sys::IsInParallelMode() && levels < 100 {
            pg_sys::ExitParallelMode();
            levels += 1;
        }
        work();
        for _ in 0..levels {
            pg_sys::EnterParallelMode();
        }
    }
}

/// When the configuration was last read: changes with every reload, whatever it changed.
#[inline]
pub fn configuration_time() -> i64 {
    // SAFETY: a plain variable of the backend.
    unsafe { pg_sys::PgReloadTime }
}

/// Settings for a while. An error puts the old ones back too, since it aborts the (sub)transaction.
pub struct TemporarySettings(c_int);

impl TemporarySettings {
    /// For running code of a table's owner: a search_path that nobody can plant things in, and no long wait
    /// for locks, below deadlock_timeout, so that a deadlock ends here and not in an application.
    pub const QUIET: &[(&CStr, &CStr)] =
        &[(c"search_path", c"pg_catalog, pg_temp"), (c"lock_timeout", c"200ms")];

    /// Begins a level of settings of its own.
    pub fn begin(settings: &[(&'static CStr, &'static CStr)]) -> Self {
        // SAFETY: names and values are static C strings.
        unsafe {
            let level = pg_sys::NewGUCNestLevel();
            for (name, value) in settings {
                pg_sys::set_config_option(
                    name.as_ptr(),
                    value.as_ptr(),
                    pg_sys::GucContext::PGC_USERSET,
                    pg_sys::GucSource::PGC_S_SESSION,
                    pg_sys::GucAction::GUC_ACTION_SAVE,
                    true,
                    0,
                    false,
                );
            }
            Self(level)
        }
    }

    /// Puts the settings back, whatever was changed meanwhile.
    pub fn end(self) {
        // SAFETY: the level that `begin` opened.
        unsafe { pg_sys::AtEOXact_GUC(false, self.0) }
    }
}
