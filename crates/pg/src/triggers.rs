//! Trigger calls: what fired, on which relation, with which rows.

use std::ffi::{CStr, c_int};

use pgrx::pg_sys::{self, Datum, Oid};

use super::call::Call;
use super::syscache::with_row;
use super::tuple::Row;
use super::{relations, text_forms, values, version};
use fieldcrypt_error::Error;

/// A call by the trigger manager.
pub struct TriggerCall {
    data: *mut pg_sys::TriggerData,
    call: pg_sys::FunctionCallInfo,
}

/// What fired a trigger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// INSERT.
    Insert,
    /// UPDATE.
    Update,
    /// DELETE.
    Delete,
    /// TRUNCATE.
    Truncate,
}

impl TriggerCall {
    /// Refuses if the function was called as an ordinary one.
    pub fn from(call: &Call) -> Result<Self, Error> {
        // SAFETY: `context` is null or a node; a TriggerData node means the trigger manager.
        unsafe {
            let context = (*call.raw()).context;
            (!context.is_null() && (*context).type_ == pg_sys::NodeTag::T_TriggerData)
                .then_some(Self { data: context.cast(), call: call.raw() })
                .ok_or(Error::NotATrigger)
        }
    }

    /// What fired.
    pub fn operation(&self) -> Operation {
        // SAFETY: valid trigger data.
        match unsafe { (*self.data).tg_event } & pg_sys::TRIGGER_EVENT_OPMASK {
            pg_sys::TRIGGER_EVENT_INSERT => Operation::Insert,
            pg_sys::TRIGGER_EVENT_DELETE => Operation::Delete,
            pg_sys::TRIGGER_EVENT_UPDATE => Operation::Update,
            _ => Operation::Truncate,
        }
    }

    /// Whether it fires after what it tells of.
    pub fn is_after(&self) -> bool {
        self.timing() == pg_sys::TRIGGER_EVENT_AFTER
    }

    /// Whether it fires before what it tells of.
    pub fn is_before(&self) -> bool {
        self.timing() == pg_sys::TRIGGER_EVENT_BEFORE
    }

    /// Whether it fires instead of what it tells of, as triggers of views do, and of nothing else.
    pub fn is_instead(&self) -> bool {
        self.timing() == pg_sys::TRIGGER_EVENT_INSTEAD
    }

    fn timing(&self) -> u32 {
        // SAFETY: valid trigger data.
        unsafe { (*self.data).tg_event & pg_sys::TRIGGER_EVENT_TIMINGMASK }
    }

    /// Whether it fires for each row.
    pub fn is_for_each_row(&self) -> bool {
        // SAFETY: valid trigger data.
        unsafe { (*self.data).tg_event & pg_sys::TRIGGER_EVENT_ROW != 0 }
    }

    /// The relation's oid.
    pub fn relation(&self) -> Oid {
        // SAFETY: valid trigger data; its relation is open while the trigger runs.
        unsafe { (*(*self.data).tg_relation).rd_id }
    }

    /// Its qualified name, in the database's encoding.
    pub fn relation_name(&self) -> Vec<u8> {
        qualified_name(self.relation())
    }

    /// For a partition, the name of the table at the top.
    pub fn root_name(&self) -> Vec<u8> {
        // SAFETY: valid trigger data; the function reads the catalog and gives an oid or NULL.
        let root = unsafe {
            let relation = (*self.data).tg_relation;
            if !(*(*relation).rd_rel).relispartition {
                return self.relation_name();
            }
            let argument = [Some(Datum::from((*relation).rd_id))];
            pgrx::direct_function_call::<Oid>(pg_sys::pg_partition_root, &argument)
        };
        qualified_name(root.unwrap_or_else(|| self.relation()))
    }

    /// What the trigger returns: the row, for a BEFORE trigger to let it pass.
    pub fn row_datum(&self) -> Option<Datum> {
        // SAFETY: valid trigger data.
        let tuple = unsafe {
            match self.operation() {
                Operation::Update => (*self.data).tg_newtuple,
                _ => (*self.data).tg_trigtuple,
            }
        };
        (!tuple.is_null()).then(|| Datum::from(tuple))
    }

    /// A column of the row before; `None` if it is NULL, or if there is no such row.
    pub fn before(&self, column: i16) -> Option<Datum> {
        // SAFETY: valid trigger data.
        unsafe {
            match self.operation() {
                Operation::Update | Operation::Delete => {
                    self.column_of((*self.data).tg_trigtuple, column)
                }
                _ => None,
            }
        }
    }

    /// A column of the row after; `None` if it is NULL, or if there is no such row.
    pub fn after(&self, column: i16) -> Option<Datum> {
        // SAFETY: valid trigger data.
        unsafe {
            match self.operation() {
                Operation::Insert => self.column_of((*self.data).tg_trigtuple, column),
                Operation::Update => self.column_of((*self.data).tg_newtuple, column),
                _ => None,
            }
        }
    }

    /// The first bytes of a varlena column of the row after, so many if it has them.
    pub fn beginning_after(&self, column: i16, length: usize) -> Option<&[u8]> {
        // SAFETY: the trigger is on columns of type `encrypted_text`, or of domains over it, which are varlenas.
        self.after(column).map(|datum| unsafe { values::beginning(datum, length) })
    }

    /// A varlena column of the row after.
    pub fn bytes_after(&self, column: i16) -> Option<&[u8]> {
        // SAFETY: as above.
        self.after(column).map(|datum| unsafe { values::detoasted(datum) })
    }

    /// A varlena column of the row before.
    pub fn bytes_before(&self, column: i16) -> Option<&[u8]> {
        // SAFETY: as above.
        self.before(column).map(|datum| unsafe { values::detoasted(datum) })
    }

    /// # Safety
    ///
    /// The tuple is one of the call's.
    unsafe fn column_of(&self, tuple: pg_sys::HeapTuple, column: i16) -> Option<Datum> {
        let column = std::num::NonZeroUsize::new(usize::try_from(column).ok()?)?;
        if tuple.is_null() {
            return None;
        }
        // SAFETY: described by the relation, which has the column.
        unsafe { pgrx::htup::heap_getattr_raw(tuple, column, (*(*self.data).tg_relation).rd_att) }
    }

    /// The row after with other values in some columns: what a BEFORE trigger returns then.
    pub fn row_with(&self, changes: &[(i16, Datum)]) -> Option<Datum> {
        if let [(column, value)] = changes {
            return self.row_modified(&mut [(*column).into()], &mut [*value], &mut [false]);
        }
        let changes: Vec<_> =
            changes.iter().map(|(column, value)| (*column, Some(*value))).collect();
        self.row_with_any(&changes)
    }

    /// The same; `None` is NULL.
    pub fn row_with_any(&self, changes: &[(i16, Option<Datum>)]) -> Option<Datum> {
        let mut columns: Vec<c_int> = changes.iter().map(|(column, _)| (*column).into()).collect();
        let mut values: Vec<Datum> =
            changes.iter().map(|(_, value)| value.unwrap_or(Datum::null())).collect();
        let mut nulls: Vec<bool> = changes.iter().map(|(_, value)| value.is_none()).collect();
        self.row_modified(&mut columns, &mut values, &mut nulls)
    }

    /// The row after with NULL in a column.
    pub(super) fn row_without(&self, column: i16) -> Option<Datum> {
        self.row_modified(&mut [column.into()], &mut [Datum::null()], &mut [true])
    }

    /// The three lists are as long. Postgres wants them mutable and leaves them as they are.
    fn row_modified(
        &self,
        columns: &mut [c_int],
        values: &mut [Datum],
        nulls: &mut [bool],
    ) -> Option<Datum> {
        assert!(columns.len() == values.len() && values.len() == nulls.len());
        let row = self.row_datum()?;
        // SAFETY: the tuple is described by the relation, which has the columns; the three lists are as long.
        let changed = unsafe {
            pg_sys::heap_modify_tuple_by_cols(
                row.cast_mut_ptr(),
                (*(*self.data).tg_relation).rd_att,
                columns.len() as c_int,
                columns.as_mut_ptr(),
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            )
        };
        Some(Datum::from(changed))
    }

    /// The trigger itself.
    pub(super) fn trigger(&self) -> *mut pg_sys::Trigger {
        // SAFETY: valid trigger data.
        unsafe { (*self.data).tg_trigger }
    }

    /// Bytes that are this trigger's for as long as the statement runs, all zero when it first asks for them.
    #[expect(
        clippy::mut_from_ref,
        reason = "they are Postgres's, one trigger has them, and a call runs once"
    )]
    pub fn kept(&self, length: usize) -> &mut [u8] {
        // SAFETY: `fn_extra` is for the function, and lives in `fn_mcxt` as long as its look-up does. No other function of
        // the library's is called by this look-up, so it is null or what was made here, of a length that begins it.
        unsafe {
            let info = (*self.call).flinfo;
            let header = size_of::<usize>();
            if (*info).fn_extra.is_null() || *(*info).fn_extra.cast::<usize>() < length {
                let memory = pg_sys::MemoryContextAllocZero((*info).fn_mcxt, header + length);
                *memory.cast::<usize>() = length;
                (*info).fn_extra = memory;
            }
            std::slice::from_raw_parts_mut((*info).fn_extra.cast::<u8>().add(header), length)
        }
    }

    /// Its relation, which is open while the trigger runs.
    pub(super) fn open_relation(&self) -> pg_sys::Relation {
        // SAFETY: valid trigger data.
        unsafe { (*self.data).tg_relation }
    }

    /// The row before and the row after; NULL where there is none.
    pub fn rows(&self) -> (Option<Row<'_>>, Option<Row<'_>>) {
        // SAFETY: the tuples are described by the relation and live while the trigger runs.
        unsafe {
            let descriptor = (*(*self.data).tg_relation).rd_att;
            let row = |tuple: pg_sys::HeapTuple| {
                (!tuple.is_null()).then(|| Row::deform(tuple, descriptor))
            };
            let (first, second) = ((*self.data).tg_trigtuple, (*self.data).tg_newtuple);
            match self.operation() {
                Operation::Insert => (None, row(first)),
                Operation::Update => (row(first), row(second)),
                Operation::Delete => (row(first), None),
                Operation::Truncate => (None, None),
            }
        }
    }

    /// Columns that are not dropped: number, name, type.
    pub fn columns(&self) -> Vec<(i16, Vec<u8>, Oid)> {
        // SAFETY: the descriptor has `natts` attributes behind it.
        unsafe {
            let descriptor = (*(*self.data).tg_relation).rd_att;
            (0..(*descriptor).natts as usize)
                .map(|index| &*version::attribute(descriptor, index))
                .filter(|attribute| !attribute.attisdropped)
                .map(|attribute| {
                    let name = CStr::from_ptr(attribute.attname.data.as_ptr());
                    (attribute.attnum, name.to_bytes().to_vec(), attribute.atttypid)
                })
                .collect()
        }
    }

    /// Whether the relation is a partitioned table, which has no rows of its own.
    pub fn is_on_partitioned_table(&self) -> bool {
        // SAFETY: valid trigger data; its relation is open while the trigger runs.
        let kind = unsafe { (*(*(*self.data).tg_relation).rd_rel).relkind };
        kind as u8 == pg_sys::RELKIND_PARTITIONED_TABLE
    }

    /// The numbers of the columns by which rows are told apart.
    pub fn row_identity(&self) -> Vec<i16> {
        // SAFETY: valid trigger data; its relation is open while the trigger runs.
        unsafe { row_identity((*self.data).tg_relation) }
    }
}

/// The numbers of the columns by which rows of a relation are told apart: those of its primary key, deferrable or
/// not; else of a unique index over columns that are NOT NULL, that of the replica identity before others, then
/// the one with the fewest columns. Empty without any. `fieldcrypt_internal.row_identity` says the same in SQL.
///
/// # Safety
///
/// The relation must be open.
pub(super) unsafe fn row_identity(relation: pg_sys::Relation) -> Vec<i16> {
    // SAFETY: the list of indexes is the caller's own copy, in the order of their oids; a cache of indexes by oid,
    // whose indkey is never NULL and has indnatts numbers behind it, of columns of the relation.
    unsafe {
        let indexes = pg_sys::RelationGetIndexList(relation);
        let indexes = pgrx::PgList::<()>::from_pg(indexes);
        let candidates = indexes.iter_oid().filter_map(|index| {
            let cache = pg_sys::SysCacheIdentifier::INDEXRELID;
            with_row(cache, &[Datum::from(index)], |row| {
                let form = &*pg_sys::GETSTRUCT(row).cast::<pg_sys::FormData_pg_index>();
                let columns = form.indkey.values.as_slice(form.indnkeyatts as usize).to_vec();
                let is_null = |number: u32| {
                    let mut is_null = false;
                    let number = number as pg_sys::AttrNumber;
                    pg_sys::SysCacheGetAttr(cache as c_int, row, number, &mut is_null);
                    is_null
                };
                let tells_apart = form.indisprimary
                    || form.indisunique
                        && form.indisvalid
                        && is_null(pg_sys::Anum_pg_index_indpred)
                        && is_null(pg_sys::Anum_pg_index_indexprs)
                        && columns.iter().all(|column| is_not_null(relation, *column));
                let rank = (!form.indisprimary, !form.indisreplident, columns.len());
                tells_apart.then_some((rank, columns))
            })
            .flatten()
        });
        candidates.min_by_key(|(rank, _)| *rank).map(|(_, columns)| columns).unwrap_or_default()
    }
}

/// # Safety
///
/// The relation is open and has such a column, or it is one of the system's, which are never NULL.
unsafe fn is_not_null(relation: pg_sys::Relation, column: i16) -> bool {
    // SAFETY: by the contract.
    column < 0
        || unsafe { (*version::attribute((*relation).rd_att, column as usize - 1)).attnotnull }
}

/// Whether a type is `encrypted`, a domain over it, or an array of either.
pub fn is_encrypted(type_oid: Oid) -> Result<bool, Error> {
    let encrypted = relations::value_types()?;
    // SAFETY: catalog look-ups; for a type that is no array the element type is InvalidOid.
    unsafe {
        let base = pg_sys::getBaseType(type_oid);
        let element = pg_sys::get_element_type(base);
        Ok(encrypted.contains(&base)
            || element != pg_sys::InvalidOid && encrypted.contains(&pg_sys::getBaseType(element)))
    }
}

/// A value as its type's output function writes it, in the database's encoding.
///
/// Settings of the session don't change what is written: a row keeps one name in the log.
pub fn output(datum: Datum, type_oid: Oid) -> Vec<u8> {
    // SAFETY: the datum is a non-null value of the type.
    unsafe { text_forms::output(datum, type_oid) }.to_vec()
}

/// Whether two values of type `encrypted` are the same bytes.
pub fn same_bytes(a: Option<Datum>, b: Option<Datum>) -> bool {
    match (a, b) {
        (None, None) => true,
        // SAFETY: both are non-null varlena datums of live tuples.
        (Some(a), Some(b)) => unsafe { values::detoasted(a) == values::detoasted(b) },
        _ => false,
    }
}

pub(super) fn qualified_name(relation: Oid) -> Vec<u8> {
    // SAFETY: catalog look-ups that answer NULL if there is none; the strings are copied.
    unsafe {
        let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(relation));
        let name = pg_sys::get_rel_name(relation);
        if schema.is_null() || name.is_null() {
            return Vec::new();
        }
        CStr::from_ptr(pg_sys::quote_qualified_identifier(schema, name)).to_bytes().to_vec()
    }
}
