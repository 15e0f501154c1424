//! Where the client's statements begin and end, seen by hooks in the executor.
//!
//! Every error of every statement passes through here: see [`super::finally`].

use std::cell::Cell;
use std::sync::OnceLock;

use fieldcrypt_error::Error;
use pgrx::pg_sys;

use super::finally::finally;
use super::{
    call, clock, database_statements, marks, nodes, setting_lock, statement_begins, version,
};

/// Who is told of the client's statements.
pub struct Listener {
    /// One begins.
    pub begins: fn() -> Result<(), Error>,
    /// One has come to its end.
    pub ends: fn() -> Result<(), Error>,
}

static LISTENER: OnceLock<Listener> = OnceLock::new();

/// Who keeps what a part of a statement has brought about until that part ends, in its own subtransaction:
/// a run of the executor, its end with the triggers, or a utility statement. Parts lie in each other.
pub struct Keeper {
    /// Whether anything is kept.
    pub keeps: fn() -> bool,
    /// A part begins: what is kept now is of those around it. What this gives is given back to `leaves`.
    pub enters: fn() -> usize,
    /// A part has come to its end.
    pub ends: fn() -> Result<(), Error>,
    /// It is over, whether it came to its end or not.
    pub leaves: fn(usize),
}

static KEEPER: OnceLock<Keeper> = OnceLock::new();

/// Registers who keeps things.
pub fn keep(keeper: Keeper) {
    KEEPER.get_or_init(|| keeper);
}

/// Whether the end of what is going on now will be seen here. It is not where the server applies what another
/// one did.
pub fn will_see_the_end() -> bool {
    DEPTH.get() > 0 || LOADED_IN.get() == clock::statement_start()
}

/// Nothing may be kept any longer.
fn let_go() {
    if KEEPER.get().is_some_and(|one| (one.keeps)()) {
        call::raising(|| KEEPER.get().map_or(Ok(()), |one| (one.ends)()));
    }
}

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static LOADED_IN: Cell<i64> = const { Cell::new(0) };
}

static mut PREVIOUS_FINISH: pg_sys::ExecutorFinish_hook_type = None;
static mut PREVIOUS_END: pg_sys::ExecutorEnd_hook_type = None;
static mut PREVIOUS_UTILITY: pg_sys::ProcessUtility_hook_type = None;

/// Hooks into the executor.
pub fn init(listener: Listener) {
    LISTENER.get_or_init(|| listener);
    database_statements::init();
    version::around_executor_runs(around_statement);
    // SAFETY: hooks are variables of the process, which has one thread; the library is never unloaded.
    unsafe {
        if !pg_sys::process_shared_preload_libraries_in_progress {
            LOADED_IN.set(clock::statement_start());
        }
        PREVIOUS_FINISH = pg_sys::ExecutorFinish_hook;
        pg_sys::ExecutorFinish_hook = Some(finish);
        PREVIOUS_END = pg_sys::ExecutorEnd_hook;
        pg_sys::ExecutorEnd_hook = Some(end);
        PREVIOUS_UTILITY = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(utility);
    }
}

/// Whether no statement is being executed, as far as that is known: not in the statement that loaded the
/// library, of which the hooks have seen only what lies inside.
pub fn is_between_statements() -> bool {
    DEPTH.get() == 0 && LOADED_IN.get() != clock::statement_start()
}

/// How deep statements are nested in one another, as far as that is known: see [`is_between_statements`].
pub fn depth() -> u32 {
    DEPTH.get()
}

fn around_statement(run: &mut dyn FnMut()) {
    if !setting_lock::is_in_step() {
        call::raising(setting_lock::keep_in_step);
    }
    if DEPTH.get() == 0 {
        // Of the statement that loaded the library.
        let_go();
    }
    if is_between_statements() {
        call::raising(|| LISTENER.get().map_or(Ok(()), |one| (one.begins)()));
    }
    nested(run);
}

unsafe extern "C-unwind" fn finish(query: *mut pg_sys::QueryDesc) {
    // SAFETY: the hook that was there before, or what Postgres does without hooks.
    nested(&mut || unsafe { PREVIOUS_FINISH.unwrap_or(unguarded::standard_ExecutorFinish)(query) });
}

unsafe extern "C-unwind" fn end(query: *mut pg_sys::QueryDesc) {
    // SAFETY: the hook that was there before, or what Postgres does without hooks.
    unsafe { PREVIOUS_END.unwrap_or(unguarded::standard_ExecutorEnd)(query) };
    if DEPTH.get() == 0 {
        let_go();
    }
    tell_of_end();
}

unsafe extern "C-unwind" fn utility(
    statement: *mut pg_sys::PlannedStmt,
    text: *const std::ffi::c_char,
    read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    receiver: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the node is that of a utility statement, the text a C string.
    unsafe {
        statement_begins::utility(text);
        marks::cursor_declared((*statement).utilityStmt);
        nodes::utility((*statement).utilityStmt);
    }
    // SAFETY: the node is that of a utility statement. Errors are those of catalog look-ups.
    let about =
        call::raising(|| Ok(unsafe { database_statements::before((*statement).utilityStmt) }));
    // SAFETY: the hook that was there before, or what Postgres does without hooks.
    around_statement(&mut || unsafe {
        PREVIOUS_UTILITY.unwrap_or(unguarded::standard_ProcessUtility)(
            statement,
            text,
            read_only,
            context,
            parameters,
            environment,
            receiver,
            completion,
        );
    });
    tell_of_end();
    database_statements::after(about);
}

fn tell_of_end() {
    if is_between_statements() {
        call::raising(|| LISTENER.get().map_or(Ok(()), |one| (one.ends)()));
    }
}

/// Runs a part of a statement one level deeper, whether it ends by an error or not.
fn nested(run: &mut dyn FnMut()) {
    let around = KEEPER.get().map_or(0, |one| (one.enters)());
    DEPTH.set(DEPTH.get() + 1);
    let mut run = || {
        run();
        let_go();
    };
    finally(&mut run, &mut |_| {
        DEPTH.set(DEPTH.get() - 1);
        nodes::utility_ended();
        if let Some(one) = KEEPER.get() {
            (one.leaves)(around);
        }
    });
}

mod unguarded {
    use pgrx::pg_sys;
    unsafe extern "C-unwind" {
        pub fn standard_ExecutorFinish(query: *mut pg_sys::QueryDesc);
        pub fn standard_ExecutorEnd(query: *mut pg_sys::QueryDesc);
        pub fn standard_ProcessUtility(
            statement: *mut pg_sys::PlannedStmt,
            text: *const std::ffi::c_char,
            read_only: bool,
            context: pg_sys::ProcessUtilityContext::Type,
            parameters: pg_sys::ParamListInfo,
            environment: *mut pg_sys::QueryEnvironment,
            receiver: *mut pg_sys::DestReceiver,
            completion: *mut pg_sys::QueryCompletion,
        );
    }
}
