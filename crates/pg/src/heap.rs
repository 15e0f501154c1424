//! Tables, read as they lie on disk: past row level security, from a row on, without the executor.
//!
//! The caller decides whose rights count; nothing here runs code of a table's owner.

use std::ffi::CStr;
use std::ops::ControlFlow;

use fieldcrypt_envelope::ciphertext::HEADER_LENGTH;
use pgrx::pg_sys::{self, Datum, Oid};
use pgrx::varlena;

use super::version::{self, of_heap};
use fieldcrypt_error::Error;

/// What a scan calls for each row, without pgrx's guard: all of it runs inside one.
mod unguarded {
    use pgrx::pg_sys;
    unsafe extern "C-unwind" {
        pub fn slot_getsomeattrs_int(slot: *mut pg_sys::TupleTableSlot, attnum: std::ffi::c_int);
        pub fn pg_detoast_datum_slice(
            datum: *mut pg_sys::varlena,
            first: i32,
            count: i32,
        ) -> *mut pg_sys::varlena;
        pub fn pfree(pointer: *mut std::ffi::c_void);
    }
}

/// Where a row lies: block and offset, as in `ctid`. Offsets begin at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowId {
    /// The block.
    pub block: u32,
    /// The line pointer in it.
    pub offset: u16,
}

impl RowId {
    /// The first place of a block.
    pub fn start_of(block: u32) -> Self {
        Self { block, offset: 1 }
    }

    /// The next place, maybe of no row.
    pub fn next(self) -> Self {
        if self.offset < Self::MAX_OFFSET {
            Self { offset: self.offset + 1, ..self }
        } else {
            Self::start_of(self.block.saturating_add(1))
        }
    }

    /// `MaxOffsetNumber` of pages of 8 kB is lower; pages of 32 kB have this.
    const MAX_OFFSET: u16 = 8192;

    pub(super) fn of(pointer: pg_sys::ItemPointerData) -> Self {
        let block = u32::from(pointer.ip_blkid.bi_hi) << 16 | u32::from(pointer.ip_blkid.bi_lo);
        Self { block, offset: pointer.ip_posid }
    }

    pub(super) fn pointer(self) -> pg_sys::ItemPointerData {
        pg_sys::ItemPointerData {
            ip_blkid: pg_sys::BlockIdData {
                bi_hi: (self.block >> 16) as u16,
                bi_lo: (self.block & 0xFFFF) as u16,
            },
            ip_posid: self.offset,
        }
    }
}

/// A column that is not dropped.
#[derive(Debug, Clone)]
pub struct Column {
    /// Its number.
    pub number: i16,
    /// Its name, in the database's encoding.
    pub name: Vec<u8>,
    /// Its type.
    pub type_oid: Oid,
    /// Whether it is computed from others.
    pub is_generated: bool,
    /// Whether its values are numbers that the database makes.
    pub is_identity: bool,
    /// Whether it has a DEFAULT.
    pub has_default: bool,
}

/// An open relation with storage of its own. After an error the transaction's resource owner closes it.
pub struct Table {
    relation: pg_sys::Relation,
    lock: pg_sys::LOCKMODE,
}

/// For what a table is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To read it.
    Read,
    /// To change rows.
    Update,
}

impl Table {
    /// Opens a relation; `None` if there is none of this id.
    pub fn open(oid: Oid, access: Access) -> Option<Self> {
        let lock = match access {
            Access::Read => pg_sys::AccessShareLock,
            Access::Update => pg_sys::RowExclusiveLock,
        } as pg_sys::LOCKMODE;
        // SAFETY: takes a lock and opens the relation if it exists.
        let relation = unsafe { pg_sys::try_relation_open(oid, lock) };
        (!relation.is_null()).then_some(Self { relation, lock })
    }

    /// Closes it; the lock stays until the transaction ends, if it was opened for updates.
    pub fn close(self) {
        let lock =
            if self.lock == pg_sys::AccessShareLock as pg_sys::LOCKMODE { self.lock } else { 0 };
        // SAFETY: opened by `open`, closed once.
        unsafe { pg_sys::relation_close(self.relation, lock) }
    }

    /// What keeps it from being scanned, if anything does.
    pub fn problem(&self) -> Option<&'static str> {
        // SAFETY: an open relation.
        unsafe {
            let form = &*(*self.relation).rd_rel;
            if form.relpersistence as u8 == pg_sys::RELPERSISTENCE_TEMP
                && !(*self.relation).rd_islocaltemp
            {
                return Some("a temporary table of another session");
            }
            match form.relkind as u8 {
                pg_sys::RELKIND_RELATION | pg_sys::RELKIND_MATVIEW => {}
                pg_sys::RELKIND_FOREIGN_TABLE => return Some("a foreign table"),
                _ => return Some("not a table"),
            }
            if form.relam != pg_sys::HEAP_TABLE_AM_OID {
                return Some("a table of another access method than heap");
            }
        }
        None
    }

    /// Whether it is a materialized view.
    pub fn is_materialized_view(&self) -> bool {
        // SAFETY: an open relation.
        unsafe { (*(*self.relation).rd_rel).relkind as u8 == pg_sys::RELKIND_MATVIEW }
    }

    /// Its name, in the database's encoding.
    pub fn name(&self) -> Vec<u8> {
        // SAFETY: an open relation, whose name ends with a zero byte.
        unsafe {
            CStr::from_ptr((*(*self.relation).rd_rel).relname.data.as_ptr()).to_bytes().to_vec()
        }
    }

    /// Its name with its schema, as SQL, in the database's encoding.
    pub fn qualified_name(&self) -> Vec<u8> {
        // SAFETY: an open relation.
        super::triggers::qualified_name(unsafe { (*self.relation).rd_id })
    }

    /// Its owner.
    pub fn owner(&self) -> Oid {
        // SAFETY: an open relation.
        unsafe { (*(*self.relation).rd_rel).relowner }
    }

    /// Blocks that it has now.
    pub fn blocks(&self) -> u32 {
        // SAFETY: an open relation with storage.
        unsafe {
            pg_sys::RelationGetNumberOfBlocksInFork(self.relation, pg_sys::ForkNumber::MAIN_FORKNUM)
        }
    }

    /// Its columns.
    pub fn columns(&self) -> Vec<Column> {
        let descriptor = self.descriptor();
        // SAFETY: the descriptor has `natts` attributes behind it.
        unsafe {
            (0..(*descriptor).natts as usize)
                .map(|index| &*version::attribute(descriptor, index))
                .filter(|attribute| !attribute.attisdropped)
                .map(|attribute| Column {
                    number: attribute.attnum,
                    name: CStr::from_ptr(attribute.attname.data.as_ptr()).to_bytes().to_vec(),
                    type_oid: attribute.atttypid,
                    is_generated: attribute.attgenerated != 0,
                    is_identity: attribute.attidentity != 0,
                    has_default: attribute.atthasdef,
                })
                .collect()
        }
    }

    /// The numbers of the columns by which rows are told apart; empty without any.
    pub fn row_identity(&self) -> Vec<i16> {
        // SAFETY: an open relation.
        unsafe { super::triggers::row_identity(self.relation) }
    }

    pub(super) fn relation(&self) -> pg_sys::Relation {
        self.relation
    }

    fn descriptor(&self) -> pg_sys::TupleDesc {
        // SAFETY: an open relation.
        unsafe { (*self.relation).rd_att }
    }
}

/// What a scan shows of a column of a row.
pub enum Glimpse<'a> {
    /// The first bytes of a value of type `encrypted`, or of a domain over it.
    Header(&'a [u8; HEADER_LENGTH]),
    /// A value too short to be one.
    Malformed,
    /// An array or a composite, to be looked into.
    Nested,
}

/// A column that a scan looks at.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Its number.
    pub column: i16,
    /// Whether it holds arrays or composites.
    pub is_nested: bool,
}

/// A scan over a part of a table, in the order of rows on disk. `finish` it; after an error the
/// transaction's resource owner does.
pub struct Scan {
    descriptor: pg_sys::TableScanDesc,
    slot: *mut pg_sys::TupleTableSlot,
    snapshot: pg_sys::Snapshot,
    looks: Vec<Look>,
    last_column: i16,
    columns: usize,
    rows: u64,
}

/// Why a scan stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// At a row that the caller wants to see.
    Row(RowId),
    /// After as many rows as it was allowed.
    Pause,
    /// At the end.
    End,
}

impl Scan {
    /// Begins at a row id, and ends before a block. Sees what was committed by now, and does not push
    /// other tables out of the buffers.
    pub fn begin(table: &Table, from: RowId, end_block: u32, looks: Vec<Look>) -> Self {
        use pg_sys::ScanOptions::{SO_ALLOW_PAGEMODE, SO_ALLOW_STRAT, SO_TYPE_TIDRANGESCAN};
        let last = end_block.saturating_sub(1);
        let mut first = from.pointer();
        let mut last = RowId { block: last, offset: RowId::MAX_OFFSET }.pointer();
        let relation = table.relation();
        // SAFETY: what `table_beginscan_tidrange` does, for a relation of the heap access method, inside
        // a guard whose closure holds nothing that needs dropping.
        let (descriptor, slot, snapshot) = unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
                let slot = pg_sys::table_slot_create(relation, std::ptr::null_mut());
                let routine = &*(*relation).rd_tableam;
                let descriptor = of_heap(routine.scan_begin)(
                    relation,
                    snapshot,
                    0,
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                    SO_TYPE_TIDRANGESCAN | SO_ALLOW_PAGEMODE | SO_ALLOW_STRAT,
                );
                of_heap(routine.scan_set_tidrange)(descriptor, &mut first, &mut last);
                (descriptor, slot, snapshot)
            })
        };
        // SAFETY: an open relation.
        let columns = unsafe { (*table.descriptor()).natts as usize };
        let last_column = looks.iter().map(|look| look.column).max().unwrap_or(0);
        Self { descriptor, slot, snapshot, looks, last_column, columns, rows: 0 }
    }

    /// The place after the row at which the scan stands.
    pub fn position(&self) -> Option<RowId> {
        // SAFETY: the slot keeps the place of the last row.
        Some(RowId::of(unsafe { (*self.slot).tts_tid }).next())
    }

    /// Rows seen so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Goes on to the next row at which `examine` breaks, called with each look's index and what is seen
    /// of a column that is not NULL. It must neither call Postgres nor panic.
    pub fn next(
        &mut self,
        at_most: u64,
        mut examine: impl FnMut(usize, Glimpse<'_>) -> ControlFlow<()>,
    ) -> Stop {
        let (descriptor, slot, last_column) = (self.descriptor, self.slot, self.last_column);
        let (looks, rows) = (self.looks.as_slice(), &mut self.rows);
        // SAFETY: one guard for all the rows; its closure holds nothing that needs dropping, and
        // `examine` panics not, by the contract. The slot holds a row after each `true`, whose arrays
        // have `last_column` elements after `slot_getsomeattrs_int`.
        unsafe {
            let relation = (*descriptor).rs_rd;
            let next = of_heap((*(*relation).rd_tableam).scan_getnextslot_tidrange);
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                for _ in 0..at_most {
                    if !next(descriptor, pg_sys::ScanDirection::ForwardScanDirection, slot) {
                        return Stop::End;
                    }
                    *rows += 1;
                    if (*slot).tts_nvalid < last_column {
                        unguarded::slot_getsomeattrs_int(slot, last_column.into());
                    }
                    let mut is_wanted = false;
                    for (index, look) in looks.iter().enumerate() {
                        let at = look.column as usize - 1;
                        if *(*slot).tts_isnull.add(at) {
                            continue;
                        }
                        let seen = if look.is_nested {
                            examine(index, Glimpse::Nested)
                        } else {
                            with_header(*(*slot).tts_values.add(at), |glimpse| {
                                examine(index, glimpse)
                            })
                        };
                        is_wanted |= seen.is_break();
                    }
                    if is_wanted {
                        return Stop::Row(RowId::of((*slot).tts_tid));
                    }
                }
                Stop::Pause
            })
        }
    }

    /// All columns of the row at which the scan stands, by number less one; `None` is NULL, as what
    /// dropped columns still hold is.
    pub fn row(&self) -> Vec<Option<Datum>> {
        // SAFETY: the slot holds a row; its arrays have an element for each column then.
        unsafe {
            if ((*self.slot).tts_nvalid as usize) < self.columns {
                pg_sys::slot_getsomeattrs_int(self.slot, self.columns as i32);
            }
            let descriptor = (*self.slot).tts_tupleDescriptor;
            (0..self.columns)
                .map(|index| {
                    let is_null = *(*self.slot).tts_isnull.add(index)
                        || (*version::attribute(descriptor, index)).attisdropped;
                    (!is_null).then(|| *(*self.slot).tts_values.add(index))
                })
                .collect()
        }
    }

    /// Ends the scan.
    pub fn finish(self) {
        // SAFETY: what `table_endscan` does; the slot and the snapshot are this scan's own.
        unsafe {
            let (descriptor, slot) = (self.descriptor, self.slot);
            let end = of_heap((*(*(*descriptor).rs_rd).rd_tableam).scan_end);
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                pg_sys::ExecDropSingleTupleTableSlot(slot);
                end(descriptor);
            });
            pg_sys::UnregisterSnapshot(self.snapshot);
        }
    }

    pub(super) fn slot(&self) -> *mut pg_sys::TupleTableSlot {
        self.slot
    }

    pub(super) fn snapshot(&self) -> pg_sys::Snapshot {
        self.snapshot
    }
}

/// Calls `examine` with the header of a stored value, fetching no more than that of one that lies out
/// of line.
///
/// # Safety
///
/// `datum` must be a non-null varlena datum. Runs inside a guard.
#[inline]
unsafe fn with_header<R>(datum: Datum, examine: impl FnOnce(Glimpse<'_>) -> R) -> R {
    let stored = datum.cast_mut_ptr::<pg_sys::varlena>();
    // SAFETY: by the contract; the slice is a plain varlena of its own.
    unsafe {
        let is_plain = varlena::varatt_is_1b(stored) && !varlena::varatt_is_1b_e(stored)
            || varlena::varatt_is_4b_u(stored);
        let plain = if is_plain {
            stored
        } else {
            unguarded::pg_detoast_datum_slice(stored, 0, HEADER_LENGTH as i32)
        };
        let length = varlena::varsize_any_exhdr(plain);
        let result = if length >= HEADER_LENGTH {
            examine(Glimpse::Header(&*varlena::vardata_any(plain).cast::<[u8; HEADER_LENGTH]>()))
        } else {
            examine(Glimpse::Malformed)
        };
        if !is_plain {
            unguarded::pfree(plain.cast());
        }
        result
    }
}

/// Refuses a relation that can't be scanned.
pub fn refuse_unless_scannable(table: &Table) -> Result<(), Error> {
    match table.problem() {
        Some(problem) => Err(Error::NotScannable { problem }),
        None => Ok(()),
    }
}
