//! CREATE, DROP and ALTER DATABASE: they refuse while anybody is connected, so the worker of that database
//! leaves meanwhile. Of that one alone, if the statement is not one that fails for want of rights, and no longer
//! than until it has failed: anybody can type such a statement, and keeps events out of no log that way.

use std::cell::Cell;
use std::ffi::{CStr, c_char};

use pgrx::pg_sys;

use super::callbacks::{self, Listener};
use super::syscache::with_form;
use super::{audit_memory, clock, session, statistics_memory, version};

/// How long workers stay away at most, should the session that asked for it die.
const LONGEST: i64 = 60_000_000;

/// Before a utility statement: sends away the worker that would be in its way. What is given back is for
/// [`after`].
///
/// # Safety
///
/// The node is a utility statement.
pub unsafe fn before(node: *mut pg_sys::Node) -> About {
    // SAFETY: by the contract.
    let about = unsafe { About::of(node) };
    if let About::Database { number, .. } = about {
        ASKED.set(number);
        audit_memory::yield_until(number, clock::now() + LONGEST);
    }
    about
}

/// After it, unless it failed. Raises nothing.
pub fn after(about: About) {
    match about {
        About::Database { number, is_dropped: true } => {
            statistics_memory::forget(number);
            if let Some(queue) = audit_memory::of_database(number) {
                queue.database_dropped();
            }
        }
        // What it wrote to the log is seen, and sealed, only now.
        About::CommitPrepared => {
            if let Some(queue) = audit_memory::of_database(session::database()) {
                queue.want_worker();
            }
        }
        About::Database { .. } | About::Other => {}
    }
}

/// Sees to it that workers come back.
pub fn init() {
    callbacks::listen(Listener {
        ended: transaction_ended,
        sub_gone: |_| transaction_ended(),
        ..Listener::DEAF
    });
}

/// A transaction, or a part of it, ends: workers may come back if it was this session that sent them away.
/// Called where nothing may fail.
fn transaction_ended() {
    let database = ASKED.replace(0);
    if database != 0 {
        audit_memory::yield_until(database, 0);
    }
}

thread_local! {
    static ASKED: Cell<u32> = const { Cell::new(0) };
}

/// What a statement is about, as far as workers are concerned.
#[derive(Clone, Copy)]
pub enum About {
    /// Nobody may be connected to this database.
    #[expect(missing_docs, reason = "said by the names")]
    Database { number: u32, is_dropped: bool },
    /// The end of a prepared transaction.
    CommitPrepared,
    /// Anything else.
    Other,
}

impl About {
    /// # Safety
    ///
    /// The node is a utility statement.
    unsafe fn of(node: *mut pg_sys::Node) -> Self {
        // SAFETY: by the contract; each node is read as what its tag says.
        unsafe {
            match (*node).type_ {
                pg_sys::NodeTag::T_DropdbStmt => {
                    Self::database((*node.cast::<pg_sys::DropdbStmt>()).dbname, true)
                }
                pg_sys::NodeTag::T_CreatedbStmt => {
                    let options = (*node.cast::<pg_sys::CreatedbStmt>()).options;
                    let template = match option(options, c"template") {
                        Some(option) if !(*option).arg.is_null() => pg_sys::defGetString(option),
                        _ => c"template1".as_ptr().cast_mut(),
                    };
                    match pg_sys::get_database_oid(template, true).to_u32() {
                        0 => Self::Other,
                        _ if !may_create_databases() => Self::Other,
                        number => Self::Database { number, is_dropped: false },
                    }
                }
                // Other options are changed under the eyes of whoever is connected.
                pg_sys::NodeTag::T_AlterDatabaseStmt => {
                    let statement = node.cast::<pg_sys::AlterDatabaseStmt>();
                    match option((*statement).options, c"tablespace") {
                        Some(_) => Self::database((*statement).dbname, false),
                        None => Self::Other,
                    }
                }
                pg_sys::NodeTag::T_RenameStmt
                    if (*node.cast::<pg_sys::RenameStmt>()).renameType
                        == pg_sys::ObjectType::OBJECT_DATABASE =>
                {
                    Self::database((*node.cast::<pg_sys::RenameStmt>()).subname, false)
                }
                pg_sys::NodeTag::T_TransactionStmt
                    if (*node.cast::<pg_sys::TransactionStmt>()).kind
                        == pg_sys::TransactionStmtKind::TRANS_STMT_COMMIT_PREPARED =>
                {
                    Self::CommitPrepared
                }
                _ => Self::Other,
            }
        }
    }

    /// # Safety
    ///
    /// The name is a C string. In a transaction.
    ///
    /// Only its owner's statements count: others' fail.
    unsafe fn database(name: *const c_char, is_dropped: bool) -> Self {
        // SAFETY: by the contract; reads the catalog, gives 0 if there is none.
        let database = unsafe { pg_sys::get_database_oid(name, true) };
        if database != pg_sys::InvalidOid && version::owns_database(database) {
            Self::Database { number: database.to_u32(), is_dropped }
        } else {
            Self::Other
        }
    }
}

fn may_create_databases() -> bool {
    use pg_sys::SysCacheIdentifier::AUTHOID;
    // SAFETY: reads variables of the backend, and catalogs: a cache of roles by oid.
    unsafe {
        let keys = [pg_sys::Datum::from(pg_sys::GetUserId())];
        let may = |form: *const pg_sys::FormData_pg_authid| (*form).rolcreatedb;
        pg_sys::superuser() || with_form(AUTHOID, &keys, may).unwrap_or(false)
    }
}

/// # Safety
///
/// The list is one of options.
unsafe fn option(options: *mut pg_sys::List, name: &CStr) -> Option<*mut pg_sys::DefElem> {
    // SAFETY: by the contract; a name is a C string.
    unsafe {
        pgrx::PgList::<pg_sys::DefElem>::from_pg(options)
            .iter_ptr()
            .find(|option| CStr::from_ptr((**option).defname) == name)
    }
}
