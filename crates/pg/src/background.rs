//! Processes of the server that belong to the extension: the launcher and the workers of the audit log, and who looks
//! whether the master key can be read.

use std::cell::Cell;
use std::ffi::{CStr, c_int};
use std::panic::{AssertUnwindSafe, UnwindSafe};
use std::sync::OnceLock;
use std::time::Duration;

use pgrx::bgworkers::{
    BackgroundWorker, BackgroundWorkerBuilder, BackgroundWorkerStatus, BgWorkerStartTime,
    DynamicBackgroundWorker, SignalWakeFlags,
};
use pgrx::pg_sys::{self, Datum};
use pgrx::prelude::*;

use super::audit_memory::{self, Queue};
use super::{clock, exit, report, reserve, session, shared_memory, version};

const LIBRARY: &str = "pg_fieldcrypt";

/// What the processes do.
pub struct Work {
    /// The launcher, until the server stops.
    pub launcher: fn(),
    /// The worker of a queue, until it has nothing to do.
    pub worker: fn(Queue),
}

static WORK: OnceLock<Work> = OnceLock::new();
static KEY_WATCH: OnceLock<fn()> = OnceLock::new();

thread_local! {
    static QUEUE: Cell<Option<Queue>> = const { Cell::new(None) };
    static HAS_FAILED: Cell<bool> = const { Cell::new(true) };
    static IS_OWN_PROCESS: Cell<bool> = const { Cell::new(false) };
}

/// Registers the launcher, if the library is being preloaded. It is not started on a standby before the
/// standby is promoted.
pub fn init(work: Work) {
    WORK.get_or_init(|| work);
    if has_processes() {
        BackgroundWorkerBuilder::new("pg_fieldcrypt audit launcher")
            .set_type("pg_fieldcrypt audit launcher")
            .set_library(LIBRARY)
            .set_function("fieldcrypt_audit_launcher")
            .set_start_time(BgWorkerStartTime::RecoveryFinished)
            .set_restart_time(Some(Duration::from_secs(1)))
            .enable_shmem_access(None)
            .load();
    }
}

/// Registers who looks after the master key, until the server stops, if the library is being preloaded. It is there
/// from the first moment, on standbys, too.
pub fn init_key_watch(work: fn()) {
    KEY_WATCH.get_or_init(|| work);
    if has_processes() {
        BackgroundWorkerBuilder::new("pg_fieldcrypt master key watch")
            .set_type("pg_fieldcrypt master key watch")
            .set_library(LIBRARY)
            .set_function("fieldcrypt_master_key_watch")
            .set_start_time(BgWorkerStartTime::PostmasterStart)
            .set_restart_time(Some(Duration::from_secs(60)))
            .enable_shmem_access(None)
            .load();
    }
}

/// Whether the library is being preloaded by a server that wants such processes. pg_upgrade wants nobody in its
/// databases but itself.
fn has_processes() -> bool {
    // SAFETY: a variable of the postmaster.
    let is_upgrade = unsafe { pg_sys::IsBinaryUpgrade };
    shared_memory::is_preloading() && !is_upgrade
}

/// Whether this process works for somebody, and not for another process: no helper of a parallel query, no
/// worker of the audit log.
pub fn is_session() -> bool {
    // SAFETY: reads a variable of the process.
    let is_helper = unsafe { pg_sys::ParallelWorkerNumber >= 0 };
    !is_helper && !IS_OWN_PROCESS.get()
}

/// A worker that was asked for.
pub struct Started(DynamicBackgroundWorker);

impl Started {
    /// Whether it has ended, or was never started.
    pub fn is_over(&self) -> bool {
        matches!(
            self.0.pid(),
            Err(BackgroundWorkerStatus::Stopped | BackgroundWorkerStatus::PostmasterDied)
        )
    }
}

/// Asks for a worker of a queue; `None` if the server has no place for one more.
pub fn start_worker(queue: Queue) -> Option<Started> {
    let process = session::process();
    BackgroundWorkerBuilder::new("pg_fieldcrypt audit worker")
        .set_type("pg_fieldcrypt audit worker")
        .set_library(LIBRARY)
        .set_function("fieldcrypt_audit_worker")
        .set_argument(Some(Datum::from(queue.index())))
        .set_notify_pid(process)
        .set_restart_time(None)
        .enable_spi_access()
        .load_dynamic()
        .ok()
        .map(Started)
}

#[doc(hidden)]
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn fieldcrypt_audit_launcher(_argument: Datum) {
    IS_OWN_PROCESS.set(true);
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    audit_memory::enter_launcher();
    // SAFETY: the callback lives as long as the library.
    unsafe { pg_sys::before_shmem_exit(Some(launcher_exits), Datum::null()) };
    if let Some(work) = WORK.get() {
        (work.launcher)();
    }
    // With 0 the postmaster would never start it again, should somebody have terminated it.
    // SAFETY: the end of the process.
    unsafe { pg_sys::proc_exit(1) }
}

#[doc(hidden)]
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn fieldcrypt_master_key_watch(_argument: Datum) {
    IS_OWN_PROCESS.set(true);
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    if let Some(work) = KEY_WATCH.get() {
        work();
    }
    // As the launcher: with 0 it would never come back.
    // SAFETY: the end of the process.
    unsafe { pg_sys::proc_exit(1) }
}

unsafe extern "C-unwind" fn launcher_exits(_: c_int, _: Datum) {
    audit_memory::leave_launcher();
}

#[doc(hidden)]
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn fieldcrypt_audit_worker(argument: Datum) {
    IS_OWN_PROCESS.set(true);
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    let Some(queue) = Queue::of_index(argument.value()) else { return };
    if !queue.enter_worker() {
        return;
    }
    QUEUE.set(Some(queue));
    // SAFETY: the callback lives as long as the library.
    unsafe { pg_sys::before_shmem_exit(Some(worker_exits), Datum::null()) };
    let database = pg_sys::Oid::from(queue.database());
    BackgroundWorker::connect_worker_to_spi_by_oid(Some(database), None);
    take_own_settings();
    if let Some(work) = WORK.get() {
        (work.worker)(queue);
    }
    HAS_FAILED.set(false);
}

/// A worker goes by settings of its own: those that the owner of the database gave it could keep it from
/// writing (`default_transaction_read_only`). An event that left the queue is on the disk
/// (`synchronous_commit`; not on a standby, whose absence would keep the worker from ever ending). And who
/// holds a lock, a prepared transaction for instance, does not keep the server from stopping.
fn take_own_settings() {
    const OWN: &[(&CStr, &CStr)] = &[
        (c"default_transaction_read_only", c"off"),
        (c"default_transaction_isolation", c"read committed"),
        (c"default_transaction_deferrable", c"off"),
        (c"synchronous_commit", c"local"),
        (c"lock_timeout", c"10s"),
        // In a deadlock with a session it is the worker that gives way, and tries again later.
        (c"deadlock_timeout", c"100ms"),
        (c"statement_timeout", c"0"),
        (c"search_path", c"pg_catalog, pg_temp"),
    ];
    for (name, value) in OWN.iter().chain(version::WORKER_SETTINGS) {
        // SAFETY: static C strings; outside of a transaction, as every process sets what it starts with. The
        // source is above all that a reload reads.
        unsafe {
            pg_sys::SetConfigOption(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_SUSET,
                pg_sys::GucSource::PGC_S_OVERRIDE,
            );
        }
    }
}

/// However it ends; an error ends it, too.
unsafe extern "C-unwind" fn worker_exits(_: c_int, _: Datum) {
    if let Some(queue) = QUEUE.take() {
        queue.leave_worker(HAS_FAILED.get(), clock::now());
    }
}

/// Waits for the process's latch, at most so long. `false` when the process is to end.
pub fn wait(longest: Duration) -> bool {
    let goes_on = nap(longest);
    take_reload();
    goes_on && !is_stopping()
}

/// Waits until the configuration is reloaded. `false` when the process is to end.
pub fn wait_for_reload() -> bool {
    const LONGEST: Duration = Duration::from_secs(3600);
    while nap(LONGEST) && !is_stopping() {
        if take_reload() {
            return true;
        }
    }
    false
}

/// Reads the configuration again if the process was told to.
fn take_reload() -> bool {
    let is_told = BackgroundWorker::sighup_received();
    if is_told {
        // SAFETY: outside of a transaction, as every process of the server does it.
        unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
    }
    is_told
}

/// No core dump of this process, and no debugger without root: it holds the signing keys.
pub fn forbid_core_dumps() {
    // A kernel that refuses does not make the keys worse than they are in every other process.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

/// Sleeps, unless the process's latch is set. `false` when the process is to end. If the postmaster died it
/// ends here: nobody starts the server again while anybody has its memory.
pub fn nap(longest: Duration) -> bool {
    let goes_on = BackgroundWorker::wait_latch(Some(longest));
    if !goes_on {
        exit::with_the_postmaster();
    }
    goes_on
}

/// Whether the server stops: the postmaster writes that into its file before it tells its children.
pub fn is_server_stopping() -> bool {
    const STATUS_LINE: usize = 8;
    session::data_directory()
        .and_then(|folder| std::fs::read_to_string(folder.join("postmaster.pid")).ok())
        .and_then(|text| text.lines().nth(STATUS_LINE - 1).map(|line| line.starts_with("stopping")))
        .unwrap_or(false)
}

/// Whether somebody asked the process to end.
pub fn is_stopping() -> bool {
    // SAFETY: a flag that the signal handler sets.
    unsafe { (&raw const pg_sys::ShutdownRequestPending).read_volatile() != 0 }
}

/// Runs `work` in a transaction of its own and commits it. An error ends the process, after `on_error` has
/// seen its message.
pub fn in_transaction<R>(
    on_error: impl Fn(&str) + UnwindSafe + std::panic::RefUnwindSafe,
    work: impl FnOnce() -> Result<R, fieldcrypt_error::Error>,
) -> R {
    let work = AssertUnwindSafe(work);
    let result = BackgroundWorker::transaction(AssertUnwindSafe(|| {
        pgrx::PgTryBuilder::new(AssertUnwindSafe(|| {
            let AssertUnwindSafe(work) = work;
            match reserve::with_cushion(work) {
                Ok(result) => result,
                Err(error) => {
                    let report = error.report();
                    pgrx::error!("{}", report.message);
                }
            }
        }))
        .catch_others(|caught| {
            on_error(&report::of_caught(&caught).message);
            caught.rethrow()
        })
        .execute()
    }));
    // Otherwise autovacuum hears of the rows only when the worker leaves.
    // SAFETY: outside of a transaction, as a session does it after a statement.
    let _ = unsafe { pg_sys::pgstat_report_stat(true) };
    result
}
