//! CREATE, DROP and ALTER DATABASE: they refuse while anybody is connected, so workers leave meanwhile.

use std::cell::Cell;
use std::ffi::c_char;

use pgrx::pg_sys;

use super::{audit_memory, session, shared_memory, statistics_memory};

/// How long workers stay away at most, should the session that asked for it die.
const LONGEST: i64 = 60_000_000;

static mut PREVIOUS: pg_sys::ProcessUtility_hook_type = None;

/// Hooks in, if the library is being preloaded: without it there are no workers.
pub fn init() {
    if shared_memory::is_preloading() {
        // SAFETY: hooks are variables of the postmaster, which has one thread.
        unsafe {
            PREVIOUS = pg_sys::ProcessUtility_hook;
            pg_sys::ProcessUtility_hook = Some(process_utility);
        }
    }
}

/// Errors of the statement pass over this frame, which holds nothing that needs dropping: a guard would turn
/// them into errors of pgrx, which show the statement.
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the arguments are handed on as they came; the node is that of a utility statement.
    unsafe {
        let about = pgrx::pgrx_extern_c_guard(|| DatabaseStatement::of((*statement).utilityStmt));
        if about.is_some() {
            ASKED.set(true);
            audit_memory::yield_until(session::now() + LONGEST);
        }
        let next = PREVIOUS.unwrap_or(unguarded::standard_ProcessUtility);
        next(
            statement,
            query,
            read_only_tree,
            context,
            parameters,
            environment,
            destination,
            completion,
        );
        if let Some(DatabaseStatement::Drops(database)) = about
            && database != 0
        {
            statistics_memory::forget(database);
            if let Some(queue) = audit_memory::all().find(|queue| queue.database() == database) {
                queue.database_dropped();
            }
        }
    }
}

/// A transaction ends: workers may come back if it was this session that sent them away. Called where
/// nothing may fail.
pub fn transaction_ended() {
    if ASKED.replace(false) {
        audit_memory::yield_until(0);
    }
}

thread_local! {
    static ASKED: Cell<bool> = const { Cell::new(false) };
}

#[derive(Clone, Copy)]
enum DatabaseStatement {
    Drops(u32),
    Other,
}

impl DatabaseStatement {
    /// # Safety
    ///
    /// The node is a utility statement.
    unsafe fn of(node: *mut pg_sys::Node) -> Option<Self> {
        // SAFETY: by the contract; each node is read as what its tag says.
        unsafe {
            match (*node).type_ {
                pg_sys::NodeTag::T_DropdbStmt => {
                    let name = (*node.cast::<pg_sys::DropdbStmt>()).dbname;
                    Some(Self::Drops(pg_sys::get_database_oid(name, true).to_u32()))
                }
                pg_sys::NodeTag::T_CreatedbStmt | pg_sys::NodeTag::T_AlterDatabaseStmt => {
                    Some(Self::Other)
                }
                pg_sys::NodeTag::T_RenameStmt
                    if (*node.cast::<pg_sys::RenameStmt>()).renameType
                        == pg_sys::ObjectType::OBJECT_DATABASE =>
                {
                    Some(Self::Other)
                }
                _ => None,
            }
        }
    }
}

mod unguarded {
    use pgrx::pg_sys;
    unsafe extern "C-unwind" {
        pub fn standard_ProcessUtility(
            statement: *mut pg_sys::PlannedStmt,
            query: *const std::ffi::c_char,
            read_only_tree: bool,
            context: pg_sys::ProcessUtilityContext::Type,
            parameters: pg_sys::ParamListInfo,
            environment: *mut pg_sys::QueryEnvironment,
            destination: *mut pg_sys::DestReceiver,
            completion: *mut pg_sys::QueryCompletion,
        );
    }
}
