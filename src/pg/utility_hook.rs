//! CREATE, DROP and ALTER DATABASE: they refuse while anybody is connected, so workers leave meanwhile.

use std::ffi::c_char;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::audit_memory::{self, Queue};
use super::{session, shared_memory};

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

#[pg_guard]
#[allow(clippy::too_many_arguments)]
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
    // SAFETY: the arguments are handed on as they came.
    unsafe {
        let away = WorkersAway::for_statement((*statement).utilityStmt);
        let next = PREVIOUS.unwrap_or(unguarded::standard_ProcessUtility);
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
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
        });
        if let Some(away) = away {
            away.succeeded();
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

/// Workers stay away while it lives.
struct WorkersAway {
    dropped: Option<u32>,
}

impl WorkersAway {
    /// # Safety
    ///
    /// The node is a utility statement.
    unsafe fn for_statement(node: *mut pg_sys::Node) -> Option<Self> {
        // SAFETY: by the contract; each node is read as what its tag says.
        let dropped = unsafe {
            match (*node).type_ {
                pg_sys::NodeTag::T_DropdbStmt => {
                    let name = (*node.cast::<pg_sys::DropdbStmt>()).dbname;
                    let oid = pg_sys::get_database_oid(name, true).to_u32();
                    (oid != 0).then_some(oid)
                }
                pg_sys::NodeTag::T_CreatedbStmt | pg_sys::NodeTag::T_AlterDatabaseStmt => None,
                pg_sys::NodeTag::T_RenameStmt
                    if (*node.cast::<pg_sys::RenameStmt>()).renameType
                        == pg_sys::ObjectType::OBJECT_DATABASE =>
                {
                    None
                }
                _ => return None,
            }
        };
        audit_memory::yield_until(session::now() + LONGEST);
        Some(Self { dropped })
    }

    fn succeeded(self) {
        if let Some(database) = self.dropped
            && let Some(queue) = audit_memory::all().find(|queue| queue.database() == database)
        {
            Queue::database_dropped(queue);
        }
    }
}

impl Drop for WorkersAway {
    fn drop(&mut self) {
        audit_memory::yield_until(0);
    }
}
