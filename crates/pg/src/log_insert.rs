//! Rows of the audit log, written as COPY writes rows: many at a time, past the planner and into their
//! partitions.
//!
//! What somebody put on the log runs as for any INSERT, since then it is one: see [`LogInsert::begin`].

use std::ffi::{CStr, c_int, c_void};
use std::ptr::null_mut;

use fieldcrypt_error::Error;
use pgrx::pg_sys::{self, Datum, Oid};

use super::memory::node;
use super::relations::Relations;
use super::version::{self, of_heap};
use super::{schemas, transaction};

/// Columns of `fieldcrypt.audit_log`.
pub const COLUMNS: usize = 25;

/// A row by column number less one; `None` is NULL. Each datum is of its column's type.
pub type Values = [Option<Datum>; COLUMNS];

/// The place of column `at`, by which the log is partitioned, in a row.
const AT: usize = 1;

/// Rows that one call hands to the heap: more than a page holds.
const AT_ONCE: usize = 100;

/// What is called for each row, without pgrx's guard: all of it runs inside one. The first four are of
/// `execPartition.h` and `partition.h`, which pgrx has no bindings for.
mod unguarded {
    use std::ffi::c_void;

    use pgrx::pg_sys;

    unsafe extern "C-unwind" {
        pub fn ExecSetupPartitionTupleRouting(
            estate: *mut pg_sys::EState,
            relation: pg_sys::Relation,
        ) -> *mut c_void;
        pub fn ExecFindPartition(
            state: *mut pg_sys::ModifyTableState,
            root: *mut pg_sys::ResultRelInfo,
            routing: *mut c_void,
            slot: *mut pg_sys::TupleTableSlot,
            estate: *mut pg_sys::EState,
        ) -> *mut pg_sys::ResultRelInfo;
        pub fn get_default_partition_oid(parent: pg_sys::Oid) -> pg_sys::Oid;
        pub fn ExecCleanupTupleRouting(state: *mut pg_sys::ModifyTableState, routing: *mut c_void);
        pub fn ExecStoreVirtualTuple(
            slot: *mut pg_sys::TupleTableSlot,
        ) -> *mut pg_sys::TupleTableSlot;
        pub fn ExecConstraints(
            result: *mut pg_sys::ResultRelInfo,
            slot: *mut pg_sys::TupleTableSlot,
            estate: *mut pg_sys::EState,
        );
        pub fn MemoryContextReset(context: pg_sys::MemoryContext);
    }
}

/// Writes rows of the log. After an error the abort of the (sub)transaction gives everything back.
pub struct LogInsert {
    relation: pg_sys::Relation,
    estate: *mut pg_sys::EState,
    state: *mut pg_sys::ModifyTableState,
    root: *mut pg_sys::ResultRelInfo,
    routing: *mut c_void,
    routed: *mut pg_sys::TupleTableSlot,
    /// From when to when, and which partition has that.
    expected: Option<(i64, i64, *mut pg_sys::ResultRelInfo)>,
    partition: *mut pg_sys::ResultRelInfo,
    is_plain: bool,
    slots: Vec<*mut pg_sys::TupleTableSlot>,
    filled: usize,
    row_memory: pg_sys::MemoryContext,
}

impl LogInsert {
    /// Opens the log. `None` where only an INSERT says what is to be done: it would be refused, or the log
    /// has columns, rules, triggers or policies that are not the extension's.
    pub fn begin() -> Result<Option<Self>, Error> {
        if transaction::refuse_unless_writable().is_err() {
            return Ok(None);
        }
        let log = Relations::resolve()?.log;
        // SAFETY: what COPY does before its first row: an executor state with the relation as its only
        // range table entry, and the state that routes rows. All of it lives in the state's own memory.
        unsafe {
            let relation = pg_sys::table_open(log, pg_sys::RowExclusiveLock as pg_sys::LOCKMODE);
            let form = &*(*relation).rd_rel;
            let is_plain = form.relkind as u8 == pg_sys::RELKIND_PARTITIONED_TABLE
                && !form.relhasrules
                && !form.relforcerowsecurity
                && (*(*relation).rd_att).natts as usize == COLUMNS
                && has_own_triggers_only((*relation).trigdesc);
            if !is_plain {
                pg_sys::table_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
                return Ok(None);
            }
            let estate = pg_sys::CreateExecutorState();
            let outer = pg_sys::MemoryContextSwitchTo((*estate).es_query_cxt);
            (*estate).es_output_cid = pg_sys::GetCurrentCommandId(true);
            version::init_range_table(estate, relation, &[]);
            let root = node::<pg_sys::ResultRelInfo>(pg_sys::NodeTag::T_ResultRelInfo);
            pg_sys::InitResultRelInfo(root, relation, 1, null_mut(), 0);
            let state = node::<pg_sys::ModifyTableState>(pg_sys::NodeTag::T_ModifyTableState);
            (*state).ps.state = estate;
            (*state).operation = pg_sys::CmdType::CMD_INSERT;
            (*state).mt_nrels = 1;
            (*state).resultRelInfo = root;
            (*state).rootResultRelInfo = root;
            let routing = pg_sys::ffi::pg_guard_ffi_boundary(|| {
                unguarded::ExecSetupPartitionTupleRouting(estate, relation)
            });
            let routed = pg_sys::MakeSingleTupleTableSlot(
                (*relation).rd_att,
                &raw const pg_sys::TTSOpsVirtual,
            );
            pg_sys::MemoryContextSwitchTo(outer);
            Ok(Some(Self {
                relation,
                estate,
                state,
                root,
                routing,
                routed,
                expected: None,
                partition: null_mut(),
                is_plain: false,
                slots: Vec::new(),
                filled: 0,
                row_memory: (*pg_sys::MakePerTupleExprContext(estate)).ecxt_per_tuple_memory,
            }))
        }
    }

    /// Rows of these times are about to come, from the earliest to the latest: if one partition has both, it has
    /// all between them, and is not looked for again. The default partition may have what others lack.
    pub fn expect(&mut self, earliest: i64, latest: i64) {
        let mut values: Values = [None; COLUMNS];
        let mut partition_of = |time: i64| {
            values[AT] = Some(Datum::from(time));
            self.partition_of(&values)
        };
        let (first, last) = (partition_of(earliest), partition_of(latest));
        // SAFETY: partitions of the log, which are open; a catalog look-up.
        let is_default = unsafe {
            let log = (*self.relation).rd_id;
            let default =
                pg_sys::ffi::pg_guard_ffi_boundary(|| unguarded::get_default_partition_oid(log));
            (*(*first).ri_RelationDesc).rd_id == default
        };
        self.expected = (first == last && !is_default).then_some((earliest, latest, first));
    }

    /// The partition of a row.
    fn partition_of(&self, values: &Values) -> *mut pg_sys::ResultRelInfo {
        if let (Some((earliest, latest, partition)), Some(at)) = (self.expected, values[AT])
            && (earliest..=latest).contains(&(at.value() as i64))
        {
            return partition;
        }
        let (state, root, routing) = (self.state, self.root, self.routing);
        let (routed, estate) = (self.routed, self.estate);
        // SAFETY: the slot has a place for each column, as the log does. The closure holds nothing that needs
        // dropping.
        unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                fill(routed, values);
                unguarded::ExecFindPartition(state, root, routing, routed, estate)
            })
        }
    }

    /// Adds a row, which is copied. `false` where its partition has more than the extension's own, so that
    /// an INSERT has to write it.
    pub fn add(&mut self, values: &Values) -> Result<bool, Error> {
        // SAFETY: the slots have a place for each column, since the tables have as many. The steps and their
        // order are those of COPY for a row. The guards' closures hold nothing that needs dropping.
        unsafe {
            let (estate, row_memory) = (self.estate, self.row_memory);
            let partition = self.partition_of(values);
            if partition != self.partition {
                self.write();
                self.turn_to(partition);
            }
            if !self.is_plain {
                return Ok(false);
            }
            if self.filled == self.slots.len() {
                let outer = pg_sys::MemoryContextSwitchTo((*estate).es_query_cxt);
                let slot = pg_sys::table_slot_create((*partition).ri_RelationDesc, null_mut());
                pg_sys::MemoryContextSwitchTo(outer);
                self.slots.push(slot);
            }
            let slot = self.slots[self.filled];
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                fill(slot, values);
                let materialize = (*(*slot).tts_ops).materialize;
                of_heap(materialize)(slot);
                (*slot).tts_tableOid = (*(*partition).ri_RelationDesc).rd_id;
                unguarded::ExecConstraints(partition, slot, estate);
                unguarded::MemoryContextReset(row_memory);
            });
            self.filled += 1;
            if self.filled == AT_ONCE {
                self.write();
            }
        }
        Ok(true)
    }

    /// Writes what was added.
    fn write(&mut self) {
        if self.filled == 0 {
            return;
        }
        let (estate, partition, row_memory) = (self.estate, self.partition, self.row_memory);
        let (slots, filled) = (self.slots.as_mut_ptr(), self.filled);
        // SAFETY: the first `filled` slots hold rows of the partition, which is open with its indexes. What the
        // heap and the indexes leave in memory goes with that of a row. The closure holds nothing that needs
        // dropping.
        unsafe {
            let relation = (*partition).ri_RelationDesc;
            let insert = of_heap((*(*relation).rd_tableam).multi_insert);
            let outer = pg_sys::MemoryContextSwitchTo(row_memory);
            let command = (*estate).es_output_cid;
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                insert(relation, slots, filled as c_int, command, 0, null_mut());
                for index in 0..filled {
                    let slot = *slots.add(index);
                    if (*partition).ri_NumIndices > 0 {
                        version::insert_new_index_entries(partition, slot, estate);
                    }
                    of_heap((*(*slot).tts_ops).clear)(slot);
                    unguarded::MemoryContextReset(row_memory);
                }
            });
            pg_sys::MemoryContextSwitchTo(outer);
        }
        self.filled = 0;
    }

    /// Turns to another partition.
    ///
    /// # Safety
    ///
    /// It is one of the log's, given by the routing; no row waits.
    unsafe fn turn_to(&mut self, partition: *mut pg_sys::ResultRelInfo) {
        // SAFETY: by the contract; the slots are this one's own.
        unsafe {
            for slot in self.slots.drain(..) {
                pg_sys::ExecDropSingleTupleTableSlot(slot);
            }
            self.partition = partition;
            let relation = (*partition).ri_RelationDesc;
            self.is_plain = (*(*relation).rd_rel).relkind as u8 == pg_sys::RELKIND_RELATION
                && has_own_triggers_only((*relation).trigdesc)
                && are_alike((*relation).rd_att, (*self.relation).rd_att);
        }
    }

    /// Writes the rest, and gives everything back but the locks.
    pub fn finish(mut self) {
        self.write();
        let (state, routing) = (self.state, self.routing);
        // SAFETY: what was set up in `begin` and `turn_to`, in reverse.
        unsafe {
            for slot in self.slots.drain(..) {
                pg_sys::ExecDropSingleTupleTableSlot(slot);
            }
            pg_sys::ExecDropSingleTupleTableSlot(self.routed);
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                unguarded::ExecCleanupTupleRouting(state, routing);
            });
            pg_sys::ExecResetTupleTable((*self.estate).es_tupleTable, false);
            pg_sys::FreeExecutorState(self.estate);
            pg_sys::table_close(self.relation, pg_sys::NoLock as pg_sys::LOCKMODE);
        }
    }
}

/// Puts a row into a slot, which points to where its values are. Inside a guard.
///
/// # Safety
///
/// The slot has as many columns, each of the datum's type.
unsafe fn fill(slot: *mut pg_sys::TupleTableSlot, values: &Values) {
    // SAFETY: by the contract.
    unsafe {
        of_heap((*(*slot).tts_ops).clear)(slot);
        for (index, value) in values.iter().enumerate() {
            *(*slot).tts_isnull.add(index) = value.is_none();
            *(*slot).tts_values.add(index) = value.unwrap_or(Datum::null());
        }
        unguarded::ExecStoreVirtualTuple(slot);
    }
}

/// Whether an INSERT would fire none but the extension's guards, which let its owner pass.
///
/// # Safety
///
/// Null, or a description with `numtriggers` triggers behind it.
unsafe fn has_own_triggers_only(description: *mut pg_sys::TriggerDesc) -> bool {
    const DISABLED: u8 = b'D';
    // SAFETY: by the contract.
    unsafe {
        description.is_null()
            || std::slice::from_raw_parts(
                (*description).triggers,
                (*description).numtriggers as usize,
            )
            .iter()
            .all(|trigger| {
                trigger.tgenabled as u8 == DISABLED
                    || c_int::from(trigger.tgtype) & pg_sys::TRIGGER_TYPE_INSERT as c_int == 0
                    || is_guard(trigger.tgfoid)
            })
    }
}

fn is_guard(function: Oid) -> bool {
    // SAFETY: catalog look-ups; the name is NULL if there is no such function.
    unsafe {
        if Some(pg_sys::get_func_namespace(function)) != schemas::oid(schemas::INTERNAL) {
            return false;
        }
        let name = pg_sys::get_func_name(function);
        !name.is_null() && [c"refuse_restore_over_log", c"keep_own"].contains(&CStr::from_ptr(name))
    }
}

/// Whether two tables have the same columns in the same order.
///
/// # Safety
///
/// Valid descriptors.
unsafe fn are_alike(one: pg_sys::TupleDesc, other: pg_sys::TupleDesc) -> bool {
    // SAFETY: by the contract; each has `natts` attributes behind it, whose names end with a zero byte.
    unsafe {
        (*one).natts == (*other).natts
            && (0..(*one).natts as usize).all(|index| {
                let (a, b) = (&*version::attribute(one, index), &*version::attribute(other, index));
                !a.attisdropped
                    && a.atttypid == b.atttypid
                    && CStr::from_ptr(a.attname.data.as_ptr())
                        == CStr::from_ptr(b.attname.data.as_ptr())
            })
    }
}
