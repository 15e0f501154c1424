//! What in the database depends on something, by `pg_depend`; and the sources of its functions.
//!
//! Read as Postgres reads its catalogs: under a catalog snapshot, which may be had before a statement
//! has a snapshot of its own.

use std::ffi::{CStr, c_char, c_int};

use fieldcrypt_error::Error;
use pgrx::pg_sys::SysCacheIdentifier::{ATTNUM, INDEXRELID, RELOID, TYPEOID};
use pgrx::pg_sys::{self, Datum, Oid};

use super::catalogs;
use super::scan::{self, oid_key};
use super::syscache::{with_form, with_row};
use super::tuple;

const PG_DEPEND: Oid = catalogs::DependRelationId;
const PG_DEPEND_BY_DEPENDENT: Oid = catalogs::DependDependerIndexId;
const PG_DEPEND_BY_REFERENCE: Oid = catalogs::DependReferenceIndexId;
const PG_REWRITE: Oid = catalogs::RewriteRelationId;
const PG_ATTRDEF: Oid = catalogs::AttrDefaultRelationId;
const PG_TRIGGER: Oid = catalogs::TriggerRelationId;
const PG_CONSTRAINT: Oid = catalogs::ConstraintRelationId;
const PG_CONSTRAINT_BY_OWNER: Oid = catalogs::ConstraintRelidTypidNameIndexId;
const PG_POLICY: Oid = catalogs::PolicyRelationId;
const PG_STATISTIC_EXT: Oid = catalogs::StatisticExtRelationId;
const PG_CAST: Oid = catalogs::CastRelationId;
const PG_OPERATOR: Oid = catalogs::OperatorRelationId;
const PG_OPCLASS: Oid = catalogs::OperatorClassRelationId;
const PG_OPFAMILY: Oid = catalogs::OperatorFamilyRelationId;
const PG_AMOP: Oid = catalogs::AccessMethodOperatorRelationId;
const PG_AMPROC: Oid = catalogs::AccessMethodProcedureRelationId;
const PG_INDEX: Oid = catalogs::IndexRelationId;

/// An object that others may depend on.
#[derive(Debug, Clone, Copy)]
pub enum Object {
    /// A table, view, composite type, index ...
    Relation(Oid),
    /// A type.
    Type(Oid),
    /// A function or procedure.
    Function(Oid),
    /// An operator.
    Operator(Oid),
    /// An operator class.
    OperatorClass(Oid),
    /// An operator family.
    OperatorFamily(Oid),
    /// An extension, on which its members depend.
    Extension(Oid),
}

impl Object {
    /// Its catalog and its number there.
    fn address(self) -> (Oid, Oid) {
        match self {
            Self::Relation(oid) => (pg_sys::RelationRelationId, oid),
            Self::Type(oid) => (pg_sys::TypeRelationId, oid),
            Self::Function(oid) => (pg_sys::ProcedureRelationId, oid),
            Self::Operator(oid) => (PG_OPERATOR, oid),
            Self::OperatorClass(oid) => (PG_OPCLASS, oid),
            Self::OperatorFamily(oid) => (PG_OPFAMILY, oid),
            Self::Extension(oid) => (pg_sys::ExtensionRelationId, oid),
        }
    }

    /// Tells it from every other.
    pub fn number(self) -> u64 {
        let (class, oid) = self.address();
        u64::from(class.to_u32()) << 32 | u64::from(oid.to_u32())
    }
}

/// An object that depends on another.
#[derive(Debug, Clone, Copy)]
pub enum Dependent {
    /// A column of a relation.
    Column(Oid, i16),
    /// A relation: by a rule (a view), default, trigger, constraint, policy or extended statistics, by
    /// its partition key, as an index, a partition or a child.
    Relation(Oid),
    /// A type: a domain (also by its constraint), an array, a range, the row type of a relation, the
    /// source or target of a cast.
    Type(Oid),
    /// A function or aggregate, by its arguments, its result, its body or its parts.
    Function(Oid),
    /// An operator, by its function or its arguments.
    Operator(Oid),
    /// An operator class, by its type, operators or functions.
    OperatorClass(Oid),
    /// An operator family, by what it holds besides its classes.
    OperatorFamily(Oid),
    /// A cast between types that are built in: any statement may run it without naming it.
    Anything,
}

/// The catalogs that are read here, and the indexes by which they are: who rebuilds one has locked only that.
const CATALOGS: [Oid; 21] = [
    pg_sys::NamespaceRelationId,
    pg_sys::ExtensionRelationId,
    pg_sys::RelationRelationId,
    pg_sys::AttributeRelationId,
    pg_sys::TypeRelationId,
    PG_DEPEND,
    PG_CONSTRAINT,
    PG_OPERATOR,
    PG_INDEX,
    pg_sys::ProcedureRelationId,
    PG_DEPEND_BY_DEPENDENT,
    PG_DEPEND_BY_REFERENCE,
    PG_CONSTRAINT_BY_OWNER,
    catalogs::NamespaceNameIndexId,
    catalogs::ExtensionNameIndexId,
    catalogs::ClassOidIndexId,
    catalogs::AttributeRelidNumIndexId,
    catalogs::TypeOidIndexId,
    catalogs::OperatorOidIndexId,
    catalogs::IndexRelidIndexId,
    catalogs::ProcedureOidIndexId,
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
pub fn of(object: Object, visit: &mut dyn FnMut(Dependent)) -> Result<(), Error> {
    use catalogs::{
        Anum_pg_depend_classid as CLASS, Anum_pg_depend_objid as OBJECT,
        Anum_pg_depend_objsubid as COLUMN, Anum_pg_depend_refclassid as REFERENCED_CLASS,
        Anum_pg_depend_refobjid as REFERENCED_OBJECT,
    };
    let (class, oid) = object.address();
    let mut keys = [oid_key(REFERENCED_CLASS, class), oid_key(REFERENCED_OBJECT, oid)];
    scan(PG_DEPEND, PG_DEPEND_BY_REFERENCE, &mut keys, &mut |row| {
        let (Some(class), Some(oid), Some(column)) =
            (row.oid(CLASS), row.oid(OBJECT), row.datum(COLUMN))
        else {
            return Ok(());
        };
        let column = column.value() as i32 as i16;
        match class {
            pg_sys::RelationRelationId if column > 0 => visit(Dependent::Column(oid, column)),
            pg_sys::RelationRelationId => visit(Dependent::Relation(oid)),
            pg_sys::TypeRelationId => visit(Dependent::Type(oid)),
            pg_sys::ProcedureRelationId => visit(Dependent::Function(oid)),
            PG_OPERATOR => visit(Dependent::Operator(oid)),
            PG_OPCLASS => {
                visit(Dependent::OperatorClass(oid));
                references(class, oid, &[pg_sys::TypeRelationId], true, visit)?;
            }
            PG_OPFAMILY => visit(Dependent::OperatorFamily(oid)),
            PG_AMOP | PG_AMPROC => {
                references(class, oid, &[PG_OPCLASS, PG_OPFAMILY], false, visit)?;
            }
            PG_CAST => {
                let mut is_named = false;
                references(class, oid, &[pg_sys::TypeRelationId], true, &mut |owner| {
                    is_named = true;
                    visit(owner);
                })?;
                if !is_named {
                    visit(Dependent::Anything);
                }
            }
            // Those of a table on itself lead nowhere; those on another are foreign keys, which call
            // nothing of it.
            PG_TRIGGER | PG_CONSTRAINT if matches!(object, Object::Relation(_)) => {}
            PG_REWRITE | PG_ATTRDEF | PG_TRIGGER | PG_CONSTRAINT | PG_POLICY | PG_STATISTIC_EXT => {
                let owners = [pg_sys::RelationRelationId, pg_sys::TypeRelationId];
                references(class, oid, &owners, false, visit)?;
            }
            _ => {}
        }
        Ok(())
    })
}

/// Calls `visit` with the relations that a relation is a partition or child of: statements about them
/// reach it.
pub fn parents(relation: Oid, visit: &mut dyn FnMut(Dependent)) -> Result<(), Error> {
    let class = pg_sys::RelationRelationId;
    references(class, relation, &[class], true, visit)
}

/// What an object itself depends on, of these catalogs: with `all` whatever it refers to, otherwise what
/// it is a part of and is dropped with. Built-in objects are in no row of `pg_depend`.
fn references(
    class: Oid,
    oid: Oid,
    of: &[Oid],
    all: bool,
    visit: &mut dyn FnMut(Dependent),
) -> Result<(), Error> {
    use catalogs::{
        Anum_pg_depend_classid as CLASS, Anum_pg_depend_deptype as KIND,
        Anum_pg_depend_objid as OBJECT, Anum_pg_depend_refclassid as REFERENCED_CLASS,
        Anum_pg_depend_refobjid as REFERENCED_OBJECT,
    };
    let mut keys = [oid_key(CLASS, class), oid_key(OBJECT, oid)];
    scan(PG_DEPEND, PG_DEPEND_BY_DEPENDENT, &mut keys, &mut |row| {
        let (Some(class), Some(oid), Some(kind)) =
            (row.oid(REFERENCED_CLASS), row.oid(REFERENCED_OBJECT), row.datum(KIND))
        else {
            return Ok(());
        };
        // AUTO, INTERNAL.
        if !of.contains(&class) || !(all || matches!(kind.value() as u8, b'a' | b'i')) {
            return Ok(());
        }
        match class {
            pg_sys::RelationRelationId => visit(Dependent::Relation(oid)),
            pg_sys::TypeRelationId => visit(Dependent::Type(oid)),
            PG_OPCLASS => visit(Dependent::OperatorClass(oid)),
            PG_OPFAMILY => visit(Dependent::OperatorFamily(oid)),
            _ => {}
        }
        Ok(())
    })
}

/// A number that changes when a domain gets a constraint or loses one: of that no relation tells.
pub fn domain_constraints() -> Result<u64, Error> {
    let mut number = 0;
    let mut keys = [oid_key(catalogs::Anum_pg_constraint_conrelid, pg_sys::InvalidOid)];
    scan(PG_CONSTRAINT, PG_CONSTRAINT_BY_OWNER, &mut keys, &mut |row| {
        if let Some(oid) = row.oid(catalogs::Anum_pg_constraint_oid) {
            number += 1 << 32 | u64::from(oid.to_u32());
        }
        Ok(())
    })?;
    Ok(number)
}

/// Calls `visit` with each function that was not made by initdb and is not in C: its id, its schema and
/// its source.
pub fn function_sources(visit: &mut dyn FnMut(Oid, Oid, &[u8])) -> Result<(), Error> {
    const PG_PROC: Oid = pg_sys::ProcedureRelationId;
    const SCHEMA: i16 = pg_sys::Anum_pg_proc_pronamespace as i16;
    const LANGUAGE: i16 = pg_sys::Anum_pg_proc_prolang as i16;
    const SOURCE: i16 = pg_sys::Anum_pg_proc_prosrc as i16;
    scan(PG_PROC, pg_sys::InvalidOid, &mut [], &mut |row| {
        let (Some(oid), Some(schema), Some(language)) =
            (row.oid(catalogs::Anum_pg_proc_oid), row.oid(SCHEMA), row.oid(LANGUAGE))
        else {
            return Ok(());
        };
        if oid.to_u32() < pg_sys::FirstNormalObjectId
            || matches!(language, catalogs::INTERNALlanguageId | catalogs::ClanguageId)
        {
            return Ok(());
        }
        if let Some(source) = row.optional_bytes(SOURCE)? {
            visit(oid, schema, source);
        }
        Ok(())
    })
}

/// The name of a relation, with its kind and schema.
pub fn relation(oid: Oid) -> Option<(Vec<u8>, u8, Oid)> {
    // SAFETY: look-ups in caches that answer NULL or zero if there is none.
    unsafe {
        let name = name(pg_sys::get_rel_name(oid))?;
        Some((name, pg_sys::get_rel_relkind(oid) as u8, pg_sys::get_rel_namespace(oid)))
    }
}

/// The type of a relation's rows.
pub fn row_type(relation: Oid) -> Option<Oid> {
    // SAFETY: as above.
    let row = unsafe { pg_sys::get_rel_type_id(relation) };
    (row != pg_sys::InvalidOid).then_some(row)
}

/// The name of a column.
pub fn column(relation: Oid, column: i16) -> Option<Vec<u8>> {
    // SAFETY: as above.
    unsafe { name(pg_sys::get_attname(relation, column, true)) }
}

/// The name of a function in the database's encoding, and its schema.
pub fn function(oid: Oid) -> Option<(Vec<u8>, Oid)> {
    // SAFETY: as above.
    unsafe { Some((name(pg_sys::get_func_name(oid))?, pg_sys::get_func_namespace(oid))) }
}

/// Whether a function is an aggregate.
pub fn is_aggregate(oid: Oid) -> bool {
    // SAFETY: as above.
    unsafe { pg_sys::get_func_prokind(oid) as u8 == pg_sys::PROKIND_AGGREGATE }
}

/// The name of an operator.
pub fn operator(oid: Oid) -> Option<Vec<u8>> {
    // SAFETY: as above.
    unsafe { name(pg_sys::get_opname(oid)) }
}

/// The table of an index.
pub fn indexed_table(index: Oid) -> Option<Oid> {
    // SAFETY: as above.
    let table = unsafe { pg_sys::IndexGetRelation(index, true) };
    (table != pg_sys::InvalidOid).then_some(table)
}

/// The name of a type.
pub fn type_name(oid: Oid) -> Option<Vec<u8>> {
    // SAFETY: a cache of types by oid; the name is copied.
    unsafe {
        with_form(TYPEOID, &[Datum::from(oid)], |form: *const pg_sys::FormData_pg_type| {
            CStr::from_ptr((*form).typname.data.as_ptr()).to_bytes().to_vec()
        })
    }
}

/// Whether a relation is one that may hold or show values of these types, or that may call something;
/// `true` if that can't be told cheaply.
pub fn may_concern(relation: Oid, types: &[Oid]) -> bool {
    // SAFETY: a cache of relations by oid.
    let found = unsafe {
        with_form(RELOID, &[Datum::from(relation)], |form: *const pg_sys::FormData_pg_class| {
            let may_call = (*form).relhastriggers
                || (*form).relhasrules
                || (*form).relrowsecurity
                || (*form).relispartition
                || (*form).relchecks > 0;
            ((*form).relkind as u8, (*form).relnatts, may_call)
        })
    };
    let Some((kind, columns, may_call)) = found else { return false };
    match kind {
        b'r' | b'f' => {
            may_call || (1..=columns).any(|column| column_may_concern(relation, column, types))
        }
        b'v' | b'm' | b'c' | b'p' => true,
        b'i' | b'I' => index_may_call(relation),
        _ => false,
    }
}

fn column_may_concern(relation: Oid, column: i16, types: &[Oid]) -> bool {
    let keys = [Datum::from(relation), Datum::from(column)];
    // SAFETY: a cache of columns by relation and number.
    let found = unsafe {
        with_form(ATTNUM, &keys, |form: *const pg_sys::FormData_pg_attribute| {
            ((*form).atttypid, (*form).atthasdef)
        })
    };
    found.is_some_and(|(oid, has_default)| {
        has_default || oid.to_u32() >= pg_sys::FirstNormalObjectId || types.contains(&oid)
    })
}

/// Whether an index has expressions, a predicate, or an operator class that is not built in.
fn index_may_call(index: Oid) -> bool {
    const CLASSES: i16 = pg_sys::Anum_pg_index_indclass as i16;
    // SAFETY: a cache of indexes by oid; the column of operator classes is never NULL and is an array of
    // ids that is stored in the row.
    let found = unsafe {
        with_row(INDEXRELID, &[Datum::from(index)], |row| {
            let holds =
                |column: u32| !pg_sys::heap_attisnull(row, column as c_int, std::ptr::null_mut());
            let mut is_null = false;
            let classes = pg_sys::SysCacheGetAttr(INDEXRELID as c_int, row, CLASSES, &mut is_null);
            let classes = classes.cast_mut_ptr::<pg_sys::oidvector>();
            let mut classes = (*classes).values.as_slice((*classes).dim1 as usize).iter();
            classes.any(|class| class.to_u32() >= pg_sys::FirstNormalObjectId)
                || holds(pg_sys::Anum_pg_index_indexprs)
                || holds(pg_sys::Anum_pg_index_indpred)
        })
    };
    found.unwrap_or(false)
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

fn scan(
    catalog: Oid,
    index: Oid,
    keys: &mut [pg_sys::ScanKeyData],
    visit: &mut dyn FnMut(&tuple::Row<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    scan::scan(catalog, index, keys, |row| visit(row).map(|()| true))
}
