//! Updates of single row versions, as the owner of their table.
//!
//! What a statement would do to a row happens here too: constraints, stored generated columns,
//! indexes, triggers. Two things differ, and are why this is no statement. A row that anybody else has
//! locked or changed is left alone and never waited for, so that no application deadlocks with it and
//! no newer value is lost. And of the triggers only those marked ENABLE ALWAYS fire, and those of foreign
//! keys and deferrable constraints where something else than the encrypted values could change.

use std::ffi::c_int;

use pgrx::pg_sys::{self, Datum, Oid};

use super::heap::{RowId, Scan, Table};
use super::memory::{self, Filled, node};
use super::owners_code::owners_code;
use super::{expression, version};
use fieldcrypt_error::Error;

/// What became of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Updated {
    /// The row has the new values.
    Done,
    /// Another transaction has locked it, or is changing it.
    Locked,
    /// It was changed or deleted since the scan began: its newer version counts.
    Changed,
    /// A trigger of the table's owner did not let it pass.
    Suppressed,
}

impl Updated {
    /// What keeps a row from being updated; `None` if nothing does.
    fn of(outcome: pg_sys::TM_Result::Type) -> Option<Self> {
        match outcome {
            pg_sys::TM_Result::TM_Ok => None,
            pg_sys::TM_Result::TM_BeingModified | pg_sys::TM_Result::TM_WouldBlock => {
                Some(Self::Locked)
            }
            _ => Some(Self::Changed),
        }
    }
}

/// Updates rows of one table in one transaction.
pub struct RowUpdate {
    estate: *mut pg_sys::EState,
    result: *mut pg_sys::ResultRelInfo,
    epq: *mut pg_sys::EPQState,
    new_slot: *mut pg_sys::TupleTableSlot,
    lock_slot: *mut pg_sys::TupleTableSlot,
    capture: *mut pg_sys::TransitionCaptureState,
    relation: pg_sys::Relation,
    is_partition: bool,
    has_constraints: bool,
    has_generated: bool,
}

impl RowUpdate {
    /// Sets it up for the table that the scan is over, to change these columns. Runs statement triggers.
    pub fn begin(table: &Table, scan: &Scan, columns: &[i16]) -> Self {
        let relation = table.relation();
        // SAFETY: what the logical replication worker does before it applies changes: an executor state
        // with the relation as its only range table entry. All of it lives in the state's own memory.
        unsafe {
            pg_sys::CheckCmdReplicaIdentity(relation, pg_sys::CmdType::CMD_UPDATE);
            let estate = pg_sys::CreateExecutorState();
            let outer = pg_sys::MemoryContextSwitchTo((*estate).es_query_cxt);
            (*estate).es_snapshot = scan.snapshot();
            (*estate).es_output_cid = pg_sys::GetCurrentCommandId(true);
            version::init_range_table(estate, relation, columns);
            let result = node::<pg_sys::ResultRelInfo>(pg_sys::NodeTag::T_ResultRelInfo);
            pg_sys::InitResultRelInfo(result, relation, 1, std::ptr::null_mut(), 0);
            (*estate).es_opened_result_relations =
                pg_sys::lappend((*estate).es_opened_result_relations, result.cast());
            let constraints = (*(*relation).rd_att).constr;
            let has_generated = !constraints.is_null() && (*constraints).has_generated_stored;
            keep_always_triggers((*result).ri_TrigDesc, has_generated);
            owners_code(|| pg_sys::ExecOpenIndices(result, false));
            let epq = memory::zeroed::<pg_sys::EPQState>();
            version::init_recheck(epq, estate);
            let descriptor = (*relation).rd_att;
            let new_slot =
                pg_sys::MakeSingleTupleTableSlot(descriptor, &raw const pg_sys::TTSOpsHeapTuple);
            let lock_slot = pg_sys::table_slot_create(relation, std::ptr::null_mut());
            pg_sys::AfterTriggerBeginQuery();
            let capture = pg_sys::MakeTransitionCaptureState(
                (*result).ri_TrigDesc,
                (*relation).rd_id,
                pg_sys::CmdType::CMD_UPDATE,
            );
            owners_code(|| pg_sys::ExecBSUpdateTriggers(estate, result));
            pg_sys::MemoryContextSwitchTo(outer);
            Self {
                estate,
                result,
                epq,
                new_slot,
                lock_slot,
                capture,
                relation,
                is_partition: (*(*relation).rd_rel).relispartition,
                has_constraints: !constraints.is_null(),
                has_generated,
            }
        }
    }

    /// Gives a row new values, if it is still as the scan saw it.
    pub fn update(&mut self, row: RowId, values: &[Option<Datum>]) -> Result<Updated, Error> {
        let mut tid = row.pointer();
        // SAFETY: the slot's arrays have a place for each column. The steps and their order are those of
        // the executor for an update of one row.
        unsafe {
            let slot = self.new_slot;
            pg_sys::ExecClearTuple(slot);
            for (index, value) in values.iter().enumerate() {
                *(*slot).tts_isnull.add(index) = value.is_none();
                *(*slot).tts_values.add(index) = value.unwrap_or(Datum::null());
            }
            pg_sys::ExecStoreVirtualTuple(slot);
            let fires_before = !(*self.result).ri_TrigDesc.is_null()
                && (*(*self.result).ri_TrigDesc).trig_update_before_row;
            if fires_before && let Some(stopped) = self.before_row(&mut tid)? {
                return Ok(stopped);
            }
            if self.has_generated {
                let (result, estate) = (self.result, self.estate);
                owners_code(|| {
                    pg_sys::ffi::pg_guard_ffi_boundary(|| {
                        version::ExecComputeStoredGenerated(
                            result,
                            estate,
                            slot,
                            pg_sys::CmdType::CMD_UPDATE,
                        );
                    });
                });
            }
            if self.has_constraints {
                owners_code(|| pg_sys::ExecConstraints(self.result, slot, self.estate));
            }
            if self.is_partition
                && !owners_code(|| {
                    pg_sys::ExecPartitionCheck(self.result, slot, self.estate, false)
                })
            {
                return Err(Error::PartitionKey);
            }
            (*slot).tts_tableOid = (*self.relation).rd_id;
            let (relation, estate) = (self.relation, self.estate);
            let (mut outcome, mut indexes) =
                version::update_tuple(relation, &mut tid, slot, estate, fires_before);
            if outcome == pg_sys::TM_Result::TM_BeingModified && !fires_before {
                // Locks of foreign keys' checks don't conflict with an update: the row may be had.
                outcome = self.lock(&mut tid)?;
                if outcome == pg_sys::TM_Result::TM_Ok {
                    (outcome, indexes) =
                        version::update_tuple(relation, &mut tid, slot, estate, true);
                }
            }
            if let Some(stopped) = Updated::of(outcome) {
                return Ok(stopped);
            }
            let recheck = match indexes {
                Some(kind) if (*self.result).ri_NumIndices > 0 => owners_code(|| {
                    version::insert_index_entries(self.result, slot, self.estate, kind)
                }),
                _ => std::ptr::null_mut(),
            };
            if !(*self.result).ri_TrigDesc.is_null() {
                owners_code(|| {
                    version::after_row_triggers(
                        self.estate,
                        self.result,
                        &mut tid,
                        slot,
                        recheck,
                        self.capture,
                    );
                });
            }
            pg_sys::list_free(recheck);
            Ok(Updated::Done)
        }
    }

    /// Runs what the table's owner put before the row, ENABLE ALWAYS. The row is locked first, without
    /// waiting: the triggers' machinery would wait.
    unsafe fn before_row(
        &mut self,
        tid: &mut pg_sys::ItemPointerData,
    ) -> Result<Option<Updated>, Error> {
        // SAFETY: called by `update`, with the new row in its slot.
        unsafe {
            if let Some(stopped) = Updated::of(self.lock(tid)?) {
                return Ok(Some(stopped));
            }
            let passes = owners_code(|| {
                version::before_row_triggers(self.estate, self.epq, self.result, tid, self.new_slot)
            });
            Ok((!passes).then_some(Updated::Suppressed))
        }
    }

    /// Locks a row version for an update that leaves its keys alone, without waiting.
    unsafe fn lock(
        &mut self,
        tid: &mut pg_sys::ItemPointerData,
    ) -> Result<pg_sys::TM_Result::Type, Error> {
        // SAFETY: called by `update`; the failure data is filled by the call, whose closure holds
        // nothing that needs dropping.
        unsafe {
            let mut failure = Filled::<pg_sys::TM_FailureData>::new();
            let Some(lock) = (*(*self.relation).rd_tableam).tuple_lock else {
                return Err(Error::Internal("a table whose rows can't be locked".into()));
            };
            let (relation, lock_slot, estate) = (self.relation, self.lock_slot, self.estate);
            let locked = pg_sys::ffi::pg_guard_ffi_boundary(|| {
                lock(
                    relation,
                    tid,
                    (*estate).es_snapshot,
                    lock_slot,
                    (*estate).es_output_cid,
                    pg_sys::LockTupleMode::LockTupleNoKeyExclusive,
                    pg_sys::LockWaitPolicy::LockWaitSkip,
                    0,
                    failure.place(),
                )
            });
            pg_sys::ExecClearTuple(lock_slot);
            Ok(locked)
        }
    }

    /// Empties the memory that a row took.
    pub fn forget_row(&mut self) {
        // SAFETY: the state's own memory for one row.
        unsafe {
            pg_sys::ExecClearTuple(self.new_slot);
            let context = pg_sys::MakePerTupleExprContext(self.estate);
            pg_sys::MemoryContextReset((*context).ecxt_per_tuple_memory);
        }
    }

    /// Runs `work` in memory that [`forget_row`](Self::forget_row) empties.
    pub fn in_row_memory<R>(&self, work: impl FnOnce() -> R) -> R {
        // SAFETY: switches to the state's own memory for one row, and back.
        unsafe {
            let context = pg_sys::MakePerTupleExprContext(self.estate);
            let outer = pg_sys::MemoryContextSwitchTo((*context).ecxt_per_tuple_memory);
            let result = work();
            pg_sys::MemoryContextSwitchTo(outer);
            result
        }
    }

    /// Makes an expression over the table's rows ready.
    pub fn prepare(&self, text: &[u8]) -> Result<expression::Expression, Error> {
        owners_code(|| expression::Expression::prepare(self.relation, self.estate, text))
    }

    /// The value of an expression for the row at which the scan stands; `None` is NULL.
    pub fn value(
        &self,
        expression: &expression::Expression,
        scan: &Scan,
    ) -> Result<Option<Vec<u8>>, Error> {
        expression.value(scan, self.estate)
    }

    /// Runs the triggers that are left, and gives everything back.
    pub fn finish(self) {
        // SAFETY: what was set up in `begin`, in reverse.
        unsafe {
            owners_code(|| {
                pg_sys::ExecASUpdateTriggers(self.estate, self.result, self.capture);
                pg_sys::AfterTriggerEndQuery(self.estate);
            });
            pg_sys::EvalPlanQualEnd(self.epq);
            pg_sys::ExecDropSingleTupleTableSlot(self.new_slot);
            pg_sys::ExecDropSingleTupleTableSlot(self.lock_slot);
            pg_sys::ExecCloseIndices(self.result);
            pg_sys::ExecResetTupleTable((*self.estate).es_tupleTable, false);
            pg_sys::FreeExecutorState(self.estate);
        }
    }
}

/// Switches all triggers off but those that are ENABLE ALWAYS, in this copy of the relation's triggers.
/// Constraints stay enforced: where a trigger of the owner or a generated column can change other columns
/// than the encrypted ones, foreign keys are checked as for any update.
unsafe fn keep_always_triggers(description: *mut pg_sys::TriggerDesc, has_generated: bool) {
    /// `TRIGGER_FIRES_ALWAYS` and `TRIGGER_DISABLED` of `trigger.h`, `RI_TRIGGER_NONE` of `commands/trigger.h`.
    const ALWAYS: u8 = b'A';
    const DISABLED: u8 = b'D';
    const NO_FOREIGN_KEY: c_int = 0;
    // SAFETY: null, or a description with `numtriggers` triggers behind it.
    unsafe {
        if description.is_null() {
            return;
        }
        let triggers = std::slice::from_raw_parts_mut(
            (*description).triggers,
            (*description).numtriggers as usize,
        );
        let changes_more = has_generated
            || triggers.iter().any(|trigger| {
                let kind = c_int::from(trigger.tgtype);
                let before_row = (pg_sys::TRIGGER_TYPE_ROW
                    | pg_sys::TRIGGER_TYPE_BEFORE
                    | pg_sys::TRIGGER_TYPE_UPDATE) as c_int;
                trigger.tgenabled as u8 == ALWAYS && kind & before_row == before_row
            });
        for trigger in triggers.iter_mut() {
            let is_constraint = trigger.tgisinternal
                && (trigger.tgfoid == Oid::from(pg_sys::F_UNIQUE_KEY_RECHECK)
                    || changes_more
                        && pg_sys::RI_FKey_trigger_type(trigger.tgfoid) != NO_FOREIGN_KEY);
            if is_constraint && trigger.tgenabled as u8 != DISABLED {
                trigger.tgenabled = ALWAYS as std::ffi::c_char;
            }
            if trigger.tgenabled as u8 != ALWAYS {
                trigger.tgenabled = DISABLED as std::ffi::c_char;
            }
        }
        let fires = |row: bool, before: bool| {
            triggers.iter().any(|trigger| {
                let kind = c_int::from(trigger.tgtype);
                trigger.tgenabled as u8 == ALWAYS
                    && kind & pg_sys::TRIGGER_TYPE_UPDATE as c_int != 0
                    && (kind & pg_sys::TRIGGER_TYPE_ROW as c_int != 0) == row
                    && (kind & pg_sys::TRIGGER_TYPE_BEFORE as c_int != 0) == before
            })
        };
        let sees = |table: fn(&pg_sys::Trigger) -> *mut std::ffi::c_char| {
            triggers.iter().any(|trigger| {
                trigger.tgenabled as u8 == ALWAYS
                    && c_int::from(trigger.tgtype) & pg_sys::TRIGGER_TYPE_UPDATE as c_int != 0
                    && !table(trigger).is_null()
            })
        };
        (*description).trig_update_before_row = fires(true, true);
        (*description).trig_update_after_row = fires(true, false);
        (*description).trig_update_before_statement = fires(false, true);
        (*description).trig_update_after_statement = fires(false, false);
        (*description).trig_update_old_table = sees(|trigger| trigger.tgoldtable);
        (*description).trig_update_new_table = sees(|trigger| trigger.tgnewtable);
    }
}
