//! What in the database depends on something, by `pg_depend`; and the sources of its functions.
//!
//! Read as Postgres reads its catalogs: under a catalog snapshot, which may be had before a statement
//! has a snapshot of its own.

use std::ffi::{CStr, c_char, c_int};
use std::mem::MaybeUninit;

use pgrx::pg_sys::{self, Datum, Oid};

use super::{tuple, values};

const PG_DEPEND: Oid = Oid::from_u32(2608);
const PG_DEPEND_BY_REFERENCE: Oid = Oid::from_u32(2674);
const PG_REWRITE: Oid = Oid::from_u32(2618);
const PG_REWRITE_BY_OID: Oid = Oid::from_u32(2692);
const PG_ATTRDEF: Oid = Oid::from_u32(2604);
const PG_ATTRDEF_BY_OID: Oid = Oid::from_u32(2657);
const PG_TRIGGER: Oid = Oid::from_u32(2620);
const PG_TRIGGER_BY_OID: Oid = Oid::from_u32(2702);

/// An object that others may depend on.
#[derive(Debug, Clone, Copy)]
pub enum Object {
    /// A table, view, composite type, index ...
    Relation(Oid),
    /// A type.
    Type(Oid),
    /// A function or procedure.
    Function(Oid),
    /// An extension, on which its members depend.
    Extension(Oid),
}

impl Object {
    /// Tells it from every other.
    pub fn number(self) -> u64 {
        let (class, oid) = match self {
            Self::Relation(oid) => (1, oid),
            Self::Type(oid) => (2, oid),
            Self::Function(oid) => (3, oid),
            Self::Extension(oid) => (4, oid),
        };
        class << 32 | u64::from(oid.to_u32())
    }
}

/// An object that depends on another.
#[derive(Debug, Clone, Copy)]
pub enum Dependent {
    /// A column of a relation.
    Column(Oid, i16),
    /// A relation, by a rule (a view), a default or a trigger.
    Relation(Oid),
    /// A type: a domain, an array, the row type of a relation.
    Type(Oid),
    /// A function, by its arguments, its result or its body.
    Function(Oid),
}

/// The catalogs that are read here.
const CATALOGS: [Oid; 6] = [
    pg_sys::ExtensionRelationId,
    PG_DEPEND,
    PG_REWRITE,
    PG_ATTRDEF,
    PG_TRIGGER,
    pg_sys::ProcedureRelationId,
];

/// That the catalogs are locked.
pub struct Locked(());

/// Locks the catalogs for reading, unless that would have to wait. After an error, the end of the
/// transaction unlocks them.
pub fn lock_without_waiting() -> Option<Locked> {
    for (done, catalog) in CATALOGS.iter().enumerate() {
        // SAFETY: takes a lock, or answers that it can't be had.
        let is_locked = unsafe {
            pg_sys::ConditionalLockRelationOid(
                *catalog,
                pg_sys::AccessShareLock as pg_sys::LOCKMODE,
            )
        };
        if !is_locked {
            unlock_first(done);
            return None;
        }
    }
    Some(Locked(()))
}

/// Unlocks them again.
pub fn unlock(_: Locked) {
    unlock_first(CATALOGS.len());
}

fn unlock_first(count: usize) {
    for catalog in CATALOGS.iter().take(count) {
        // SAFETY: gives back a lock that was taken.
        unsafe {
            pg_sys::UnlockRelationOid(*catalog, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        }
    }
}

/// The extension, if this database has it.
pub fn extension() -> Option<Oid> {
    // SAFETY: a catalog look-up by name that answers InvalidOid if there is none.
    let oid = unsafe { pg_sys::get_extension_oid(c"pg_fieldcrypt".as_ptr(), true) };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// Calls `visit` with what depends on an object directly.
pub fn of(object: Object, visit: &mut dyn FnMut(Dependent)) {
    let (class, oid) = match object {
        Object::Relation(oid) => (pg_sys::RelationRelationId, oid),
        Object::Type(oid) => (pg_sys::TypeRelationId, oid),
        Object::Function(oid) => (pg_sys::ProcedureRelationId, oid),
        Object::Extension(oid) => (pg_sys::ExtensionRelationId, oid),
    };
    const CLASS: i16 = 1;
    const OBJECT: i16 = 2;
    const COLUMN: i16 = 3;
    const REFERENCED_CLASS: i16 = 4;
    const REFERENCED_OBJECT: i16 = 5;
    let mut keys = [oid_key(REFERENCED_CLASS, class), oid_key(REFERENCED_OBJECT, oid)];
    scan(PG_DEPEND, PG_DEPEND_BY_REFERENCE, &mut keys, &mut |row| {
        let (Some(class), Some(oid), Some(column)) =
            (row.oid(CLASS), row.oid(OBJECT), row.datum(COLUMN))
        else {
            return;
        };
        let column = column.value() as i32 as i16;
        match class {
            pg_sys::RelationRelationId if column > 0 => visit(Dependent::Column(oid, column)),
            pg_sys::TypeRelationId => visit(Dependent::Type(oid)),
            pg_sys::ProcedureRelationId => visit(Dependent::Function(oid)),
            PG_REWRITE => relation_of(PG_REWRITE, PG_REWRITE_BY_OID, 3, oid, visit),
            PG_ATTRDEF => relation_of(PG_ATTRDEF, PG_ATTRDEF_BY_OID, 2, oid, visit),
            PG_TRIGGER if !matches!(object, Object::Relation(_)) => {
                relation_of(PG_TRIGGER, PG_TRIGGER_BY_OID, 2, oid, visit);
            }
            _ => {}
        }
    });
}

/// The relation that a rule, default or trigger belongs to.
fn relation_of(catalog: Oid, index: Oid, column: i16, oid: Oid, visit: &mut dyn FnMut(Dependent)) {
    scan(catalog, index, &mut [oid_key(1, oid)], &mut |row| {
        if let Some(relation) = row.oid(column) {
            visit(Dependent::Relation(relation));
        }
    });
}

/// Calls `visit` with each function that was not made by initdb and is not in C: its id, its schema and
/// its source.
pub fn function_sources(visit: &mut dyn FnMut(Oid, Oid, &[u8])) {
    const PG_PROC: Oid = pg_sys::ProcedureRelationId;
    const SCHEMA: i16 = pg_sys::Anum_pg_proc_pronamespace as i16;
    const LANGUAGE: i16 = pg_sys::Anum_pg_proc_prolang as i16;
    const SOURCE: i16 = pg_sys::Anum_pg_proc_prosrc as i16;
    scan(PG_PROC, pg_sys::InvalidOid, &mut [], &mut |row| {
        let (Some(oid), Some(schema), Some(language)) =
            (row.oid(1), row.oid(SCHEMA), row.oid(LANGUAGE))
        else {
            return;
        };
        // "internal" and "c".
        if oid.to_u32() < pg_sys::FirstNormalObjectId || matches!(language.to_u32(), 12 | 13) {
            return;
        }
        if let Some(source) = row.bytes(SOURCE) {
            visit(oid, schema, source);
        }
    });
}

/// The name of a relation, with its kind and schema.
pub fn relation(oid: Oid) -> Option<(Vec<u8>, u8, Oid)> {
    // SAFETY: look-ups in caches that answer NULL or zero if there is none.
    unsafe {
        let name = name(pg_sys::get_rel_name(oid))?;
        Some((name, pg_sys::get_rel_relkind(oid) as u8, pg_sys::get_rel_namespace(oid)))
    }
}

/// The name of a column.
pub fn column(relation: Oid, column: i16) -> Option<Vec<u8>> {
    // SAFETY: as above.
    unsafe { name(pg_sys::get_attname(relation, column, true)) }
}

/// The name of a function, with its schema.
pub fn function(oid: Oid) -> Option<(Vec<u8>, Oid)> {
    // SAFETY: as above.
    unsafe { Some((name(pg_sys::get_func_name(oid))?, pg_sys::get_func_namespace(oid))) }
}

/// The name of a type.
pub fn type_name(oid: Oid) -> Option<Vec<u8>> {
    // SAFETY: the sequence of every look-up in a syscache: the tuple is valid until it is released.
    unsafe {
        let tuple =
            pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::TYPEOID as c_int, Datum::from(oid));
        if tuple.is_null() {
            return None;
        }
        let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_type>();
        let name = CStr::from_ptr((*form).typname.data.as_ptr()).to_bytes().to_vec();
        pg_sys::ReleaseSysCache(tuple);
        Some(name)
    }
}

/// What a relation is, if it is one that may hold or show values of these types; `true` if that can't be
/// told cheaply.
pub fn may_concern(relation: Oid, types: &[Oid]) -> bool {
    // SAFETY: as for `type_name`; `relnatts` columns at most are looked up.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::RELOID as c_int,
            Datum::from(relation),
        );
        if tuple.is_null() {
            return false;
        }
        let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>();
        let (kind, columns, has_triggers) =
            ((*form).relkind as u8, (*form).relnatts, (*form).relhastriggers);
        pg_sys::ReleaseSysCache(tuple);
        match kind {
            b'r' | b'p' | b'f' => {
                has_triggers
                    || (1..=columns).any(|column| {
                        let oid = pg_sys::get_atttype(relation, column);
                        oid.to_u32() >= pg_sys::FirstNormalObjectId || types.contains(&oid)
                    })
            }
            b'v' | b'm' | b'c' => true,
            _ => false,
        }
    }
}

/// Runs `work` with a memory context of its own; what it gives must not point there.
pub fn in_own_context<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: after an error, the end of the transaction frees the context with its parent.
    unsafe {
        let outer = pg_sys::MemoryContextSwitchTo(pg_sys::CurTransactionContext);
        let scratch = super::memory::Scratch::new();
        let result = scratch.run(work);
        scratch.end();
        pg_sys::MemoryContextSwitchTo(outer);
        result
    }
}

unsafe fn name(name: *const c_char) -> Option<Vec<u8>> {
    // SAFETY: a C string or NULL.
    (!name.is_null()).then(|| unsafe { CStr::from_ptr(name).to_bytes().to_vec() })
}

/// A row of a catalog during a scan.
struct CatalogRow<'t>(tuple::Row<'t>);

impl CatalogRow<'_> {
    fn datum(&self, column: i16) -> Option<Datum> {
        self.0.datum(column)
    }

    fn oid(&self, column: i16) -> Option<Oid> {
        self.datum(column).map(|datum| Oid::from_u32(datum.value() as u32))
    }

    fn bytes(&self, column: i16) -> Option<&[u8]> {
        // SAFETY: called for a column of type text; the tuple outlives the row.
        self.datum(column).map(|datum| unsafe { values::detoasted(datum) })
    }
}

fn scan(
    catalog: Oid,
    index: Oid,
    keys: &mut [pg_sys::ScanKeyData],
    visit: &mut dyn FnMut(&CatalogRow<'_>),
) {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: the sequence of every catalog scan in Postgres; a row is used only before the next
    // `systable_getnext`. After an error the transaction's resource owner releases everything.
    unsafe {
        let heap = pg_sys::table_open(catalog, lock);
        let descriptor = pg_sys::systable_beginscan(
            heap,
            index,
            index != pg_sys::InvalidOid,
            std::ptr::null_mut(),
            keys.len() as c_int,
            keys.as_mut_ptr(),
        );
        loop {
            let tuple = pg_sys::systable_getnext(descriptor);
            if tuple.is_null() {
                break;
            }
            visit(&CatalogRow(tuple::Row::deform(tuple, (*heap).rd_att)));
        }
        pg_sys::systable_endscan(descriptor);
        pg_sys::table_close(heap, lock);
    }
}

fn oid_key(column: i16, oid: Oid) -> pg_sys::ScanKeyData {
    let mut key = MaybeUninit::<pg_sys::ScanKeyData>::zeroed();
    // SAFETY: initialises the structure it is given; all-zero bytes are valid for it before that.
    unsafe {
        pg_sys::ScanKeyInit(
            key.as_mut_ptr(),
            column,
            pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber,
            Oid::from_u32(pg_sys::F_OIDEQ),
            Datum::from(oid),
        );
        key.assume_init()
    }
}
