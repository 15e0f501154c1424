//! Literals out of the server log: `fieldcrypt.redact_logs`.
//!
//! What is masked, and how, is the crate `fieldcrypt-sql-text`; which statements, is decided here; the
//! hook that every line of the log passes is `pg::log_hook`.

mod known;
mod line;

use std::cell::Cell;

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use pgrx::pg_sys::Datum;

use crate::error::Error;
use crate::pg::call::{Call, sql_functions};
use crate::pg::{log_hook, session};

pub use known::{constraint_changed, relation_changed};
pub use line::{Line, Masked};

sql_functions! {
    fieldcrypt_redaction_is_active, pg_finfo_fieldcrypt_redaction_is_active => redaction_is_active;
}

/// Which statements appear in the log without their literals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub enum Redaction {
    /// None.
    #[name = c"off"]
    Off,
    /// Those that concern encrypted values.
    #[name = c"on"]
    On,
    /// All.
    #[name = c"all"]
    All,
}

/// A log is copied to more places, and read by more people, than the database. On unless somebody
/// decides otherwise.
static REDACT_LOGS: GucSetting<Redaction> = GucSetting::<Redaction>::new(Redaction::On);

thread_local! {
    static MARKED_STATEMENT: Cell<i64> = const { Cell::new(i64::MIN) };
}

/// Defines the setting, and takes its place in the server log if the library is preloaded.
pub fn init() {
    session::outside_parallel_mode(|| {
        GucRegistry::define_enum_guc(
            c"fieldcrypt.redact_logs",
            c"Which statements are written to the server log without their literals.",
            c"\"on\": those that call the extension or name an encrypted column, its table or what depends on them. Needs pg_fieldcrypt in shared_preload_libraries.",
            &REDACT_LOGS,
            GucContext::Sighup,
            GucFlags::default(),
        );
    });
    if log_hook::init() {
        log_hook::watch_catalogs();
    }
}

/// `fieldcrypt.redact_logs`.
pub fn setting() -> Redaction {
    REDACT_LOGS.get()
}

/// Notes that the client's statement has called the extension: whatever its text says, it concerns
/// encrypted values. On the path of every value.
#[inline]
pub fn mark_statement() {
    MARKED_STATEMENT.set(session::statement_start());
}

/// Whether what the log is about to tell of concerns encrypted values; `true` if it can't be told.
pub fn concerns(texts: &[&[u8]], names: &[&[u8]]) -> bool {
    setting() == Redaction::All
        || MARKED_STATEMENT.get() == session::statement_start()
        || (log_hook::has_database() && known::mention(texts, names))
}

/// Brings what is known of the catalogs up to date, where they may be read.
pub fn refresh() {
    known::refresh();
}

/// Whether the log asked for that before, or will at the end of the statement.
#[inline]
pub fn is_refresh_wanted(is_logging: bool) -> bool {
    setting() == Redaction::On && known::is_wanted(is_logging)
}

fn redaction_is_active(_: &Call) -> Result<Option<Datum>, Error> {
    Ok(Some(Datum::from(log_hook::is_active() && setting() != Redaction::Off)))
}
