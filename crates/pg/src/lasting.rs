//! Whether what an expression gives for a row stays the same: after a dump and restore, after columns were added, after
//! the row was re-encrypted. What goes by anything else is found here, and what can be computed for no row at all.

use std::ffi::{CStr, c_int, c_void};

use pgrx::pg_sys::{self, NodeTag, Oid};

use super::shape::Shape;
use super::{key_values, schemas, version};
use fieldcrypt_error::Error;

/// What a planned or analysed expression over the relation goes by that does not last; `None`: nothing.
///
/// # Errors
///
/// A call of `fieldcrypt.context` that gives an error for every row.
///
/// # Safety
///
/// An expression over columns of the relation alone, which is open.
pub(super) unsafe fn flaw(
    relation: pg_sys::Relation,
    expression: *mut pg_sys::Node,
) -> Result<Option<&'static str>, Error> {
    let mut to_judge = vec![expression];
    while let Some(one) = to_judge.pop() {
        // SAFETY: by the contract; columns' expressions are over the same relation.
        for node in unsafe { parts(one) } {
            // SAFETY: as above; the tag says what the node is.
            let flaw = unsafe {
                match (*node).type_ {
                    NodeTag::T_Var => {
                        let number = (*node.cast::<pg_sys::Var>()).varattno;
                        if is_generated(relation, number) {
                            to_judge.push(pg_sys::build_column_default(relation, number.into()));
                        }
                        of_column(number)
                    }
                    NodeTag::T_FuncExpr => {
                        refuse_impossible_context(node.cast())?;
                        None
                    }
                    _ => None,
                }
            };
            // SAFETY: as above; `parts` gives expressions only.
            let flaw = flaw.or(of_type(unsafe { pg_sys::exprType(node) })?);
            if flaw.is_some() {
                return Ok(flaw);
            }
        }
    }
    Ok(None)
}

fn of_column(number: i16) -> Option<&'static str> {
    match number {
        1.. => None,
        0 => {
            Some("the context expression goes by the whole row: a column that is added changes it")
        }
        _ => Some(
            "the context expression goes by a system column (tableoid, ctid, xmin, ...), which is another one after a dump and restore",
        ),
    }
}

fn of_type(type_oid: Oid) -> Result<Option<&'static str>, Error> {
    if Shape::of(type_oid)?.is_some() {
        return Ok(Some(
            "the context expression goes by an encrypted column, which has another value after re-encryption",
        ));
    }
    // SAFETY: catalog look-ups by type.
    let is_of_names = unsafe {
        let base = pg_sys::getBaseType(type_oid);
        match pg_sys::get_element_type(base) {
            pg_sys::InvalidOid => is_of_names(base),
            element => is_of_names(pg_sys::getBaseType(element)),
        }
    };
    Ok(is_of_names.then_some(
        "the context expression goes by the name or number of a table, type, role or the like: renamed or restored, it is another",
    ))
}

/// Whether values of a type are numbers of what the catalogs hold, and written as its name.
fn is_of_names(type_oid: Oid) -> bool {
    matches!(
        type_oid,
        pg_sys::REGCLASSOID
            | pg_sys::REGPROCOID
            | pg_sys::REGPROCEDUREOID
            | pg_sys::REGOPEROID
            | pg_sys::REGOPERATOROID
            | pg_sys::REGTYPEOID
            | pg_sys::REGROLEOID
            | pg_sys::REGNAMESPACEOID
            | pg_sys::REGCOLLATIONOID
            | pg_sys::REGCONFIGOID
            | pg_sys::REGDICTIONARYOID
    )
}

/// Refuses a call of `fieldcrypt.context` that raises for every row.
///
/// # Safety
///
/// A call in an analysed expression.
unsafe fn refuse_impossible_context(call: *mut pg_sys::FuncExpr) -> Result<(), Error> {
    // SAFETY: by the contract; the name is compared before it is freed with its memory context, arguments are
    // expressions, and a constant that is not null is of its type.
    unsafe {
        if Some(pg_sys::get_func_namespace((*call).funcid)) != schemas::oid(schemas::USERS)
            || CStr::from_ptr(pg_sys::get_func_name((*call).funcid)) != c"context"
        {
            return Ok(());
        }
        if (*call).funcvariadic {
            return Err(Error::ContextOfArray);
        }
        let arguments = pgrx::PgList::<pg_sys::Node>::from_pg((*call).args);
        for (index, argument) in arguments.iter_ptr().enumerate() {
            let constant =
                ((*argument).type_ == NodeTag::T_Const).then(|| &*argument.cast::<pg_sys::Const>());
            if constant.is_some_and(|constant| constant.constisnull) {
                return Err(Error::ContextPartIsNull);
            }
            let value = constant.map(|constant| constant.constvalue);
            key_values::refuse_unless_part(index, pg_sys::exprType(argument), value)?;
        }
    }
    Ok(())
}

/// # Safety
///
/// An open relation.
unsafe fn is_generated(relation: pg_sys::Relation, number: i16) -> bool {
    // SAFETY: by the contract; the number is compared first.
    unsafe {
        let descriptor = (*relation).rd_att;
        (1..=(*descriptor).natts).contains(&c_int::from(number))
            && (*version::attribute(descriptor, number as usize - 1)).attgenerated != 0
    }
}

/// The columns, constants, calls and casts of an expression: where a type comes into it.
///
/// # Safety
///
/// An analysed expression.
unsafe fn parts(expression: *mut pg_sys::Node) -> Vec<*mut pg_sys::Node> {
    let mut found: Vec<*mut pg_sys::Node> = Vec::new();
    // SAFETY: the callback runs none of Postgres's code that raises, and the walk is inside a guard whose closure
    // holds nothing that needs dropping.
    unsafe {
        let list = (&raw mut found).cast();
        pg_sys::ffi::pg_guard_ffi_boundary(|| collect(expression, list));
    }
    found
}

unsafe extern "C-unwind" fn collect(node: *mut pg_sys::Node, found: *mut c_void) -> bool {
    // SAFETY: null or a node, read as what its tag says it is; `found` is the list of `parts`.
    unsafe {
        if node.is_null() {
            return false;
        }
        let found_so_far = &mut *found.cast::<Vec<*mut pg_sys::Node>>();
        match (*node).type_ {
            NodeTag::T_Var
            | NodeTag::T_Const
            | NodeTag::T_FuncExpr
            | NodeTag::T_RelabelType
            | NodeTag::T_CoerceViaIO
            | NodeTag::T_ArrayCoerceExpr
            | NodeTag::T_CoerceToDomain => found_so_far.push(node),
            // Of a composite column the one part counts.
            NodeTag::T_FieldSelect => {
                found_so_far.push(node);
                let whole = (*node.cast::<pg_sys::FieldSelect>()).arg.cast::<pg_sys::Node>();
                let is_of_row = (*whole).type_ == NodeTag::T_Var
                    && (*whole.cast::<pg_sys::Var>()).varattno >= 0;
                if is_of_row {
                    return false;
                }
            }
            _ => {}
        }
        version::expression_tree_walker(node, collect, found)
    }
}
