//! Columns that are computed when they are read, from PostgreSQL 18 on.

use pgrx::pg_sys;

/// An expression over the first relation of a query in which no virtual column is left: of those nothing is stored.
///
/// # Safety
///
/// An analysed expression over columns of the relation, which is open.
pub(in super::super) unsafe fn without_virtual_columns(
    expression: *mut pg_sys::Node,
    relation: pg_sys::Relation,
) -> *mut pg_sys::Node {
    #[cfg(not(feature = "pg18"))]
    {
        let _ = relation;
        expression
    }
    // SAFETY: by the contract.
    #[cfg(feature = "pg18")]
    unsafe {
        pg_sys::expand_generated_columns_in_expr(expression, relation, 1)
    }
}
