//! Every line that differs between PostgreSQL versions.

use pgrx::pg_sys;

use super::memory;

mod saved_errors;
mod session_start;
mod virtual_columns;

pub(super) use saved_errors::{finish_saving, saves_errors, start_saving};
pub(super) use session_start::session_start;
pub(super) use virtual_columns::without_virtual_columns;

/// Reserves the prefix `fieldcrypt.`, so that a misspelt setting is an error.
pub fn reserve_setting_prefix() {
    // SAFETY: the class name is a static C string.
    unsafe {
        pg_sys::MarkGUCPrefixReserved(c"fieldcrypt".as_ptr());
    }
}

/// Whether a setting that is defined by nobody yet was given a value by somebody. Reset, it stays known to Postgres, and from
/// 17 on looks like an empty text.
pub(super) fn is_set(name: &'static std::ffi::CStr) -> bool {
    // SAFETY: a look-up by name that makes nothing, and answers NULL if there is none.
    unsafe {
        #[cfg(feature = "pg15")]
        return !pg_sys::GetConfigOption(name.as_ptr(), true, false).is_null();
        #[cfg(not(feature = "pg15"))]
        {
            let setting =
                pg_sys::find_option(name.as_ptr(), false, true, pgrx::PgLogLevel::ERROR as i32);
            !setting.is_null() && (*setting).source != pg_sys::GucSource::PGC_S_DEFAULT
        }
    }
}

/// Ends the process.
///
/// # Safety
///
/// No lock is held.
pub(super) unsafe fn proc_exit(code: i32) -> ! {
    // SAFETY: by the contract.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        pg_sys::proc_exit(code);
        // Of which 18's headers do not tell the bindings that it never returns.
        #[cfg(feature = "pg18")]
        {
            pg_sys::proc_exit(code);
            std::process::abort()
        }
    }
}

/// Whether the user has an owner's rights on a database. In a transaction.
pub fn owns_database(database: pg_sys::Oid) -> bool {
    // SAFETY: reads catalogs.
    unsafe {
        #[cfg(feature = "pg15")]
        return pg_sys::pg_database_ownercheck(database, pg_sys::GetUserId());
        #[cfg(not(feature = "pg15"))]
        return pg_sys::object_ownercheck(
            pg_sys::DatabaseRelationId,
            database,
            pg_sys::GetUserId(),
        );
    }
}

/// Whether a role may call a function. In a transaction.
pub(super) fn may_execute(function: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: reads catalogs.
    unsafe {
        let execute = pg_sys::ACL_EXECUTE as pg_sys::AclMode;
        #[cfg(feature = "pg15")]
        let result = pg_sys::pg_proc_aclcheck(function, role, execute);
        #[cfg(not(feature = "pg15"))]
        let result = pg_sys::object_aclcheck(pg_sys::ProcedureRelationId, function, role, execute);
        result == pg_sys::AclResult::ACLCHECK_OK
    }
}

/// Whether all rows of a relation are known to meet one of its CHECK constraints, and those of its children.
///
/// # Safety
///
/// The constraint is one that the relation's cache has.
pub(super) unsafe fn is_believed(check: *const pg_sys::ConstrCheck) -> bool {
    // SAFETY: by the contract.
    unsafe {
        #[cfg(feature = "pg18")]
        if !(*check).ccenforced {
            return false;
        }
        (*check).ccvalid && !(*check).ccnoinherit
    }
}

/// An attribute of a row type.
///
/// # Safety
///
/// The descriptor must be valid and have more attributes than `index`.
pub unsafe fn attribute(
    descriptor: pg_sys::TupleDesc,
    index: usize,
) -> *const pg_sys::FormData_pg_attribute {
    // SAFETY: by the contract.
    unsafe {
        #[cfg(feature = "pg18")]
        return pg_sys::TupleDescAttr(descriptor, index as i32);
        #[cfg(not(feature = "pg18"))]
        return (*descriptor).attrs.as_ptr().add(index);
    }
}

/// Whether a record is written with the statement that is running.
///
/// # Safety
///
/// The record is valid.
pub(super) unsafe fn shows_statement(record: *const pg_sys::ErrorData) -> bool {
    // SAFETY: by the contract; reads settings and variables of the process.
    unsafe { pg_sys::check_log_of_query(record.cast_mut()) }
}

/// Called for a node of an expression, with what was passed along; `true` ends the walk.
pub(super) type Walker =
    unsafe extern "C-unwind" fn(*mut pg_sys::Node, *mut std::ffi::c_void) -> bool;

mod walk {
    use super::Walker;
    use pgrx::pg_sys;
    unsafe extern "C-unwind" {
        /// Of `nodeFuncs.h`, which pgrx has no bindings for. Call it inside a guard.
        #[cfg_attr(not(feature = "pg15"), link_name = "expression_tree_walker_impl")]
        pub fn expression_tree_walker(
            node: *mut pg_sys::Node,
            walker: Walker,
            context: *mut std::ffi::c_void,
        ) -> bool;
    }
}
pub(super) use walk::expression_tree_walker;

mod executor {
    use pgrx::pg_sys;
    unsafe extern "C-unwind" {
        /// Of `nodeModifyTable.h`, which pgrx has no bindings for. Call it inside a guard.
        pub fn ExecComputeStoredGenerated(
            result: *mut pg_sys::ResultRelInfo,
            estate: *mut pg_sys::EState,
            slot: *mut pg_sys::TupleTableSlot,
            command: pg_sys::CmdType::Type,
        );
        /// As pgrx has it, but without a guard.
        pub fn ExecInsertIndexTuples(
            result: *mut pg_sys::ResultRelInfo,
            slot: *mut pg_sys::TupleTableSlot,
            estate: *mut pg_sys::EState,
            update: bool,
            no_error: bool,
            conflict: *mut bool,
            arbiters: *mut pg_sys::List,
            #[cfg(not(feature = "pg15"))] only_summarizing: bool,
        ) -> *mut pg_sys::List;
    }
}
pub(super) use executor::ExecComputeStoredGenerated;

/// Which index entries an updated row needs.
#[cfg(feature = "pg15")]
pub(super) type IndexUpdate = ();
/// Which index entries an updated row needs.
#[cfg(not(feature = "pg15"))]
pub(super) type IndexUpdate = pg_sys::TU_UpdateIndexes::Type;

/// Gives an executor state a range table of one relation, of which these columns are updated: triggers
/// and generated columns ask for them.
///
/// # Safety
///
/// The state is new, the relation open; the current memory context is the state's.
pub(super) unsafe fn init_range_table(
    estate: *mut pg_sys::EState,
    relation: pg_sys::Relation,
    columns: &[i16],
) {
    // SAFETY: by the contract; the entry is a node as `makeNode` gives. Sets of columns count
    // from the lowest system column.
    unsafe {
        let updated = columns.iter().fold(std::ptr::null_mut(), |set, column| {
            let member = i32::from(*column) - pg_sys::FirstLowInvalidHeapAttributeNumber;
            pg_sys::bms_add_member(set, member)
        });
        let entry = memory::node::<pg_sys::RangeTblEntry>(pg_sys::NodeTag::T_RangeTblEntry);
        (*entry).rtekind = pg_sys::RTEKind::RTE_RELATION;
        (*entry).relid = (*relation).rd_id;
        (*entry).relkind = (*(*relation).rd_rel).relkind;
        (*entry).rellockmode = pg_sys::RowExclusiveLock as i32;
        let list = pg_sys::lappend(std::ptr::null_mut(), entry.cast());
        #[cfg(feature = "pg15")]
        {
            (*entry).updatedCols = updated;
            pg_sys::ExecInitRangeTable(estate, list);
        }
        #[cfg(not(feature = "pg15"))]
        {
            // Its rights are those of the table's owner, and checked by nobody: the list has an entry
            // because later versions look for one.
            let rights =
                memory::node::<pg_sys::RTEPermissionInfo>(pg_sys::NodeTag::T_RTEPermissionInfo);
            (*rights).relid = (*relation).rd_id;
            (*rights).updatedCols = updated;
            (*entry).perminfoindex = 1;
            let rights = pg_sys::lappend(std::ptr::null_mut(), rights.cast());
            #[cfg(not(feature = "pg18"))]
            pg_sys::ExecInitRangeTable(estate, list, rights);
            #[cfg(feature = "pg18")]
            pg_sys::ExecInitRangeTable(estate, list, rights, pg_sys::bms_make_singleton(1));
        }
    }
}

/// Sets up what BEFORE ROW triggers would recheck a changed row with; none is ever rechecked here.
///
/// # Safety
///
/// `epq` is zeroed memory, the state an initialised one.
pub(super) unsafe fn init_recheck(epq: *mut pg_sys::EPQState, estate: *mut pg_sys::EState) {
    use std::ptr::null_mut;
    // SAFETY: by the contract.
    unsafe {
        #[cfg(feature = "pg15")]
        pg_sys::EvalPlanQualInit(epq, estate, null_mut(), null_mut(), -1);
        #[cfg(not(feature = "pg15"))]
        pg_sys::EvalPlanQualInit(epq, estate, null_mut(), null_mut(), -1, null_mut());
    }
}

/// Updates a row version in place of `table_tuple_update`. With `is_ours` the row is locked by this
/// transaction already; otherwise nobody is waited for.
///
/// # Safety
///
/// The relation is open for updates, the slot holds the new row, the state has a snapshot and a command.
pub(super) unsafe fn update_tuple(
    relation: pg_sys::Relation,
    tid: &mut pg_sys::ItemPointerData,
    slot: *mut pg_sys::TupleTableSlot,
    estate: *mut pg_sys::EState,
    is_ours: bool,
) -> (pg_sys::TM_Result::Type, Option<IndexUpdate>) {
    let mut failure = memory::Filled::<pg_sys::TM_FailureData>::new();
    let mut lock = pg_sys::LockTupleMode::LockTupleNoKeyExclusive;
    #[cfg(feature = "pg15")]
    let mut indexes = false;
    #[cfg(not(feature = "pg15"))]
    let mut indexes = pg_sys::TU_UpdateIndexes::TU_None;
    // SAFETY: by the contract; the closure holds nothing that needs dropping.
    unsafe {
        let update = of_heap((*(*relation).rd_tableam).tuple_update);
        let outcome = pg_sys::ffi::pg_guard_ffi_boundary(|| {
            update(
                relation,
                tid,
                slot,
                (*estate).es_output_cid,
                (*estate).es_snapshot,
                std::ptr::null_mut(),
                is_ours,
                failure.place(),
                &mut lock,
                &mut indexes,
            )
        });
        #[cfg(feature = "pg15")]
        let indexes = indexes.then_some(());
        #[cfg(not(feature = "pg15"))]
        let indexes = (indexes != pg_sys::TU_UpdateIndexes::TU_None).then_some(indexes);
        (outcome, indexes)
    }
}

/// A routine of the heap access method, of which no other is looked for.
pub(super) fn of_heap<F>(routine: Option<F>) -> F {
    match routine {
        Some(routine) => routine,
        None => unreachable!("the heap access method has it"),
    }
}

/// Makes the index entries of an updated row; gives the indexes to be checked again.
///
/// # Safety
///
/// After [`update_tuple`] of the slot's row, with the indexes open.
pub(super) unsafe fn insert_index_entries(
    result: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    estate: *mut pg_sys::EState,
    kind: IndexUpdate,
) -> *mut pg_sys::List {
    use std::ptr::null_mut;
    // SAFETY: by the contract.
    unsafe {
        #[cfg(feature = "pg15")]
        {
            let () = kind;
            pg_sys::ExecInsertIndexTuples(result, slot, estate, true, false, null_mut(), null_mut())
        }
        #[cfg(not(feature = "pg15"))]
        pg_sys::ExecInsertIndexTuples(
            result,
            slot,
            estate,
            true,
            false,
            null_mut(),
            null_mut(),
            kind == pg_sys::TU_UpdateIndexes::TU_Summarizing,
        )
    }
}

/// Makes the index entries of a new row. Call it inside a guard.
///
/// # Safety
///
/// The slot holds a row that was just written to the relation, whose indexes are open, none of them deferrable.
pub(super) unsafe fn insert_new_index_entries(
    result: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    estate: *mut pg_sys::EState,
) {
    use std::ptr::null_mut;
    macro_rules! insert {
        ($($more:expr),*) => {
            executor::ExecInsertIndexTuples(
                result, slot, estate, false, false, null_mut(), null_mut() $(, $more)*
            )
        };
    }
    // SAFETY: by the contract; the list is empty.
    unsafe {
        #[cfg(feature = "pg15")]
        insert!();
        #[cfg(not(feature = "pg15"))]
        insert!(false);
    }
}

/// Fires BEFORE ROW triggers; `false` if one did not let the row pass.
///
/// # Safety
///
/// The row is locked, `epq` set up, the slot holds the new row.
pub(super) unsafe fn before_row_triggers(
    estate: *mut pg_sys::EState,
    epq: *mut pg_sys::EPQState,
    result: *mut pg_sys::ResultRelInfo,
    tid: &mut pg_sys::ItemPointerData,
    slot: *mut pg_sys::TupleTableSlot,
) -> bool {
    use std::ptr::null_mut;
    // SAFETY: by the contract.
    unsafe {
        macro_rules! fire {
            ($($more:expr),*) => {
                pg_sys::ExecBRUpdateTriggers(estate, epq, result, tid, null_mut(), slot $(, $more)*)
            };
        }
        #[cfg(feature = "pg15")]
        return fire!(null_mut());
        #[cfg(any(feature = "pg16", feature = "pg17"))]
        return fire!(null_mut(), null_mut());
        #[cfg(feature = "pg18")]
        return fire!(null_mut(), null_mut(), false);
    }
}

/// Queues AFTER ROW triggers.
///
/// # Safety
///
/// After an update of the row; the slot holds its new version.
pub(super) unsafe fn after_row_triggers(
    estate: *mut pg_sys::EState,
    result: *mut pg_sys::ResultRelInfo,
    tid: &mut pg_sys::ItemPointerData,
    slot: *mut pg_sys::TupleTableSlot,
    recheck: *mut pg_sys::List,
    capture: *mut pg_sys::TransitionCaptureState,
) {
    use std::ptr::null_mut;
    // SAFETY: by the contract.
    unsafe {
        pg_sys::ExecARUpdateTriggers(
            estate,
            result,
            null_mut(),
            null_mut(),
            tid,
            null_mut(),
            slot,
            recheck,
            capture,
            false,
        );
    }
}

/// Calls `request` when the postmaster lets libraries ask for shared memory.
pub fn when_memory_is_asked_for(request: fn()) {
    static mut PREVIOUS: pg_sys::shmem_request_hook_type = None;
    static mut REQUEST: Option<fn()> = None;
    unsafe extern "C-unwind" fn hook() {
        // SAFETY: variables of the postmaster, which has one thread.
        unsafe {
            if let Some(previous) = PREVIOUS {
                previous();
            }
            if let Some(request) = REQUEST {
                request();
            }
        }
    }
    // SAFETY: as above; called from `_PG_init`.
    unsafe {
        REQUEST = Some(request);
        PREVIOUS = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(hook);
    }
}

/// Hooks into the executor's runs: `around` is given what is to be run.
pub fn around_executor_runs(around: fn(&mut dyn FnMut())) {
    use unguarded::standard_ExecutorRun;
    static mut PREVIOUS: pg_sys::ExecutorRun_hook_type = None;
    static mut AROUND: Option<fn(&mut dyn FnMut())> = None;

    unsafe extern "C-unwind" fn hook(
        query: *mut pg_sys::QueryDesc,
        direction: pg_sys::ScanDirection::Type,
        count: u64,
        #[cfg(not(feature = "pg18"))] once: bool,
    ) {
        // SAFETY: variables of a process that has one thread; the arguments are passed on.
        unsafe {
            let run = PREVIOUS.unwrap_or(standard_ExecutorRun);
            if let Some(around) = AROUND {
                around(&mut || {
                    #[cfg(not(feature = "pg18"))]
                    run(query, direction, count, once);
                    #[cfg(feature = "pg18")]
                    run(query, direction, count);
                });
            }
        }
    }

    // SAFETY: as above; called from `_PG_init`.
    unsafe {
        AROUND = Some(around);
        PREVIOUS = pg_sys::ExecutorRun_hook;
        pg_sys::ExecutorRun_hook = Some(hook);
    }
}

/// Further settings of the workers' own: what PostgreSQL 17 and later end a process by.
#[cfg(any(feature = "pg17", feature = "pg18"))]
pub const WORKER_SETTINGS: &[(&std::ffi::CStr, &std::ffi::CStr)] =
    &[(c"transaction_timeout", c"0")];
/// Further settings of the workers' own.
#[cfg(not(any(feature = "pg17", feature = "pg18")))]
pub const WORKER_SETTINGS: &[(&std::ffi::CStr, &std::ffi::CStr)] = &[];

mod unguarded {
    use pgrx::pg_sys;
    unsafe extern "C-unwind" {
        pub fn standard_ExecutorRun(
            query: *mut pg_sys::QueryDesc,
            direction: pg_sys::ScanDirection::Type,
            count: u64,
            #[cfg(not(feature = "pg18"))] once: bool,
        );
    }
}
