//! Work beside a statement that must not end it: no error, no cancel and no timeout of the work reaches the
//! statement, and its own timeout does not count the time.

use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use fieldcrypt_error::SqlState;
use pgrx::pg_sys::{self, panic::CaughtError};

use super::{clock, report};

unsafe extern "C" {
    fn get_timeout_active(timeout: c_int) -> bool;
    fn get_timeout_finish_time(timeout: c_int) -> i64;
    fn enable_timeout_at(timeout: c_int, finish: i64);
    fn disable_timeout(timeout: c_int, keep_indicator: bool);
}

/// `STATEMENT_TIMEOUT` of `timeout.h`.
const STATEMENT_TIMEOUT: c_int = 3;

/// Whether there may be work apart: not in parallel mode, in which no subtransaction may begin.
pub fn is_possible() -> bool {
    // SAFETY: reads a variable of the backend.
    !unsafe { pg_sys::IsInParallelMode() }
}

/// Runs work that waits for nobody, in a subtransaction of its own. An error of it comes back as its SQLSTATE; want of
/// memory alone goes on. Until the transaction ends, Postgres keeps a lock that it had no memory to note
/// (`LockAcquireExtended`), and whoever asks for that one again, as the statement may, ends the server.
pub fn run(work: impl FnOnce()) -> Result<(), SqlState> {
    let outcome = undisturbed(|| {
        // SAFETY: the sequence with which PL/pgSQL runs a block that catches errors. Whatever `work` opened is
        // closed at the end of the subtransaction.
        unsafe {
            let (context, owner) = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
            pg_sys::BeginInternalSubTransaction(std::ptr::null());
            pg_sys::MemoryContextSwitchTo(context);
            let outcome = catch_unwind(AssertUnwindSafe(work));
            match &outcome {
                Ok(()) => pg_sys::ReleaseCurrentSubTransaction(),
                Err(_) => pg_sys::RollbackAndReleaseCurrentSubTransaction(),
            }
            pg_sys::MemoryContextSwitchTo(context);
            pg_sys::CurrentResourceOwner = owner;
            outcome
        }
    });
    outcome.map_err(|problem| {
        let of_postgres = problem.downcast_ref::<CaughtError>();
        let state =
            of_postgres.map_or(SqlState(*b"XX000"), |caught| report::of_caught(caught).sqlstate);
        if state.0 == *b"53200" {
            resume_unwind(problem);
        }
        state
    })
}

/// Runs work that waits for nobody: a cancel, or the end of the session, comes after it.
pub fn undisturbed<R>(work: impl FnOnce() -> R) -> R {
    let held = Held::begin();
    let result = work();
    drop(held);
    result
}

/// Interrupts are held, and the timeout of the statement stands still.
struct Held {
    interrupts: u32,
    cancels: u32,
    timeout: Option<i64>,
    since: i64,
}

impl Held {
    fn begin() -> Self {
        // SAFETY: variables of the process; a timeout is looked up and stopped as Postgres itself does
        // between statements.
        unsafe {
            let held = Self {
                interrupts: pg_sys::InterruptHoldoffCount,
                cancels: pg_sys::QueryCancelHoldoffCount,
                timeout: get_timeout_active(STATEMENT_TIMEOUT)
                    .then(|| get_timeout_finish_time(STATEMENT_TIMEOUT)),
                since: clock::now(),
            };
            pg_sys::InterruptHoldoffCount += 1;
            if held.timeout.is_some() {
                disable_timeout(STATEMENT_TIMEOUT, true);
            }
            held
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: as above. An error resets the counts to zero.
        unsafe {
            if let Some(finish) = self.timeout {
                let passed = (clock::now() - self.since).max(0);
                enable_timeout_at(STATEMENT_TIMEOUT, finish.saturating_add(passed));
            }
            pg_sys::InterruptHoldoffCount = self.interrupts;
            pg_sys::QueryCancelHoldoffCount = self.cancels;
        }
    }
}
