//! Literals out of the server log: `fieldcrypt.redact_logs`.
//!
//! What is masked, and how, is the crate `fieldcrypt-sql-text`; which statements, is decided here; the
//! hook that every line of the log passes is `pg::log_hook`.

mod known;
mod line;
mod own_names;

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};

use crate::pg::log_hook::{self, Masker};
use crate::pg::setting;

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

/// Defines the setting, and takes its place in the server log if the library is preloaded.
pub fn init() {
    setting::outside_parallel_mode(|| {
        GucRegistry::define_enum_guc(
            c"fieldcrypt.redact_logs",
            c"Which statements are written to the server log without their literals.",
            c"\"on\": those that call the extension or name an encrypted column, its table or what depends on them. Needs pg_fieldcrypt in shared_preload_libraries.",
            &REDACT_LOGS,
            GucContext::Sighup,
            GucFlags::default(),
        );
    });
    log_hook::init(Masker {
        is_on: || redact_logs() != Redaction::Off,
        concerns: line::is_to_be_masked,
        masked: line::masked,
        looks,
        refresh: || {
            known::refresh(known::ReadAt::Statement);
        },
        is_about_values: known::begins,
        relation_changed: known::relation_changed,
        constraint_changed: known::constraint_changed,
    });
}

/// `fieldcrypt.redact_logs`.
fn redact_logs() -> Redaction {
    REDACT_LOGS.get()
}

/// Whether statements that begin are looked at: with `all` there is nothing to tell apart, and without need the
/// catalogs are not read.
#[inline]
fn looks(is_logging: bool) -> bool {
    redact_logs() == Redaction::On && known::is_wanted(is_logging)
}

/// Whether lines are masked here.
pub fn is_active() -> bool {
    log_hook::is_active() && redact_logs() != Redaction::Off
}
