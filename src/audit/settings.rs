//! Settings of what seals the log and of its retention.

use std::ffi::CString;

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};

use crate::pg::setting;

static CHECKPOINT_COMMAND: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
static RETENTION: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"6 years"));

crate::pg::numbers! {
    SEAL_INTERVAL = 3000, 100, 600_000, GucFlags::UNIT_MS, GucContext::Sighup,
        c"fieldcrypt.audit_seal_interval",
        c"How long after a row was written to the audit log a checkpoint covers it, at the latest.",
        c"Each thousand rows make one earlier.";
    KEY_EPOCH = 3600, 1, 86_400 * 30, GucFlags::UNIT_S, GucContext::Sighup,
        c"fieldcrypt.audit_key_epoch",
        c"How long one key signs the checkpoints of the audit log.",
        c"Then it signs its successor and is erased, so that nobody can use it to rewrite the past.";
    LINGER = 10_000, 0, 3_600_000, GucFlags::UNIT_MS, GucContext::Sighup,
        c"fieldcrypt.audit_worker_linger",
        c"How long a worker of the audit log waits for more before it leaves.",
        c"It occupies one of max_worker_processes for as long.";
    /// Plain GRANTs and memberships are told to nobody: somebody has to look.
    ACCESS_INTERVAL = 86_400, 0, 86_400 * 30, GucFlags::UNIT_S, GucContext::Sighup,
        c"fieldcrypt.audit_access_interval",
        c"How often it is looked at which roles each privilege reaches, to record what has changed.",
        c"By the workers of the audit log, and by each check_audit_log(). 0: never.";
    CHECKPOINT_COMMAND_INTERVAL = 60, 1, 86_400, GucFlags::UNIT_S, GucContext::Sighup,
        c"fieldcrypt.audit_checkpoint_command_interval",
        c"Least time between two runs of the checkpoint command for one database.",
        c"The checkpoint with which a worker leaves is passed on at once.";
}

/// Rows after which a checkpoint is due, however little time has passed.
pub const SEAL_ROWS: u64 = 1000;

/// Defines the settings.
pub fn init() {
    // As the other settings are: the library may be loaded in a parallel query.
    setting::outside_parallel_mode(define);
}

fn define() {
    define_numbers();
    GucRegistry::define_string_guc(
        c"fieldcrypt.audit_retention",
        c"How long rows of the audit log are kept.",
        c"An interval. fieldcrypt.apply_audit_retention() empties partitions (years) whose rows are all older.",
        &RETENTION,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"fieldcrypt.audit_checkpoint_command",
        c"Command that takes a checkpoint of the audit log out of the server's reach.",
        c"It gets the signed checkpoint on its standard input. Only settable in the configuration file.",
        &CHECKPOINT_COMMAND,
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY | GucFlags::DISALLOW_IN_AUTO_FILE,
    );
}

/// `fieldcrypt.audit_retention`.
pub fn retention() -> Vec<u8> {
    RETENTION.get().map(CString::into_bytes).unwrap_or_default()
}

/// `fieldcrypt.audit_seal_interval` in microseconds.
pub fn seal_interval() -> i64 {
    i64::from(SEAL_INTERVAL.get()) * 1000
}

/// `fieldcrypt.audit_key_epoch` in microseconds.
pub fn key_epoch() -> i64 {
    i64::from(KEY_EPOCH.get()) * 1_000_000
}

/// `fieldcrypt.audit_worker_linger` in microseconds.
pub fn linger() -> i64 {
    i64::from(LINGER.get()) * 1000
}

/// `fieldcrypt.audit_access_interval` in microseconds, unless it is never.
pub fn access_interval() -> Option<i64> {
    let seconds = ACCESS_INTERVAL.get();
    (seconds > 0).then(|| i64::from(seconds) * 1_000_000)
}

/// `fieldcrypt.audit_checkpoint_command`.
pub fn checkpoint_command() -> Option<Vec<u8>> {
    let command = CHECKPOINT_COMMAND.get()?;
    (!command.is_empty()).then(|| command.into_bytes())
}

/// `fieldcrypt.audit_checkpoint_command_interval` in microseconds.
pub fn checkpoint_command_interval() -> i64 {
    i64::from(CHECKPOINT_COMMAND_INTERVAL.get()) * 1_000_000
}
