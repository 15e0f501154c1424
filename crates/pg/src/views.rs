//! Views over one table, as their own definition says it: which column of the table is behind which of the view. Names are
//! those of now, so that a view goes on when its table is renamed.

use std::ffi::CStr;

use fieldcrypt_error::Error;
use pgrx::pg_sys::{self, Datum, Oid};

use super::heap::{Access, Column, Table};
use super::setting::TemporarySettings;
use super::triggers::TriggerCall;
use super::{values, version};

/// A view over one table.
pub struct View {
    /// The table, qualified, as SQL.
    pub table: Vec<u8>,
    /// The table.
    pub relation: Oid,
    /// The columns of the view, in its order.
    pub columns: Vec<ViewColumn>,
    /// The columns of the table by which its rows are told apart, if the view shows them all: places in `columns`.
    pub key: Option<Vec<usize>>,
}

/// A column of a view.
pub struct ViewColumn {
    /// Its number.
    pub number: i16,
    /// Its type.
    pub type_oid: Oid,
    /// What it shows, as SQL over a row of the table that is called `t`.
    pub expression: Vec<u8>,
    /// The column of the table behind it; `None` if it shows something else.
    pub behind: Option<Column>,
    /// Whether it shows that column as it is.
    pub is_plain: bool,
    /// Whether the view has a DEFAULT for it.
    pub has_default: bool,
}

impl TriggerCall {
    /// Whether a varlena column is stored the same after as before, as far as can be told without fetching what lies out of
    /// line. Both being NULL is the same.
    pub fn is_kept(&self, column: i16) -> bool {
        match (self.before(column), self.after(column)) {
            (None, None) => true,
            // SAFETY: values of the column, which are varlenas of as many bytes as they say.
            (Some(before), Some(after)) => unsafe {
                values::stored(before) == values::stored(after)
            },
            _ => false,
        }
    }

    /// The view that the trigger is on.
    ///
    /// # Errors
    ///
    /// A view over more than one table, or over none.
    pub fn view(&self) -> Result<View, Error> {
        let guard = TemporarySettings::begin(&[
            (c"search_path", c"pg_catalog"),
            (c"quote_all_identifiers", c"off"),
            (c"standard_conforming_strings", c"on"),
        ]);
        let view = if self.is_instead() {
            // SAFETY: the relation is open while the trigger runs; only views have triggers of this kind.
            unsafe { read(self.open_relation()) }
        } else {
            Err(not_over_one_table())
        };
        guard.end();
        view
    }

    /// Whether a column is other bytes after than before; of an INSERT, whether it is not NULL.
    pub fn is_changed(&self, column: i16) -> bool {
        // SAFETY: the relation has the column, of which both are values.
        unsafe {
            let attribute =
                &*version::attribute((*self.open_relation()).rd_att, column as usize - 1);
            match (self.before(column), self.after(column)) {
                (None, None) => false,
                (Some(before), Some(after)) => !is_same_image(attribute, before, after),
                _ => true,
            }
        }
    }
}

/// # Safety
///
/// The relation is an open view.
unsafe fn read(view: pg_sys::Relation) -> Result<View, Error> {
    // SAFETY: the query of a view, whose nodes are read as what their tags say; the copies are this call's own.
    unsafe {
        let query = pg_sys::get_view_query(view);
        // What groups or cuts has rows that are none of the table's.
        let is_of_rows = (*query).groupClause.is_null()
            && (*query).groupingSets.is_null()
            && (*query).distinctClause.is_null()
            && (*query).setOperations.is_null()
            && (*query).limitCount.is_null()
            && (*query).limitOffset.is_null()
            && !(*query).hasAggs
            && !(*query).hasWindowFuncs
            && !(*query).hasTargetSRFs;
        if !is_of_rows {
            return Err(not_over_one_table());
        }
        let tables: Vec<(i32, Oid)> =
            pgrx::PgList::<pg_sys::RangeTblEntry>::from_pg((*query).rtable)
                .iter_ptr()
                .enumerate()
                .filter(|(_, entry)| {
                    (**entry).rtekind == pg_sys::RTEKind::RTE_RELATION && (**entry).inFromCl
                })
                .map(|(index, entry)| (index as i32 + 1, (*entry).relid))
                .collect();
        let [(place, relation)] = tables[..] else { return Err(not_over_one_table()) };
        let table = Table::open(relation, Access::Read).ok_or_else(not_over_one_table)?;
        let behind = table.columns();
        let names = pg_sys::deparse_context_for(c"t".as_ptr(), relation);
        let mut columns = Vec::new();
        for entry in pgrx::PgList::<pg_sys::TargetEntry>::from_pg((*query).targetList).iter_ptr() {
            if (*entry).resjunk {
                continue;
            }
            let node: *mut pg_sys::Node = pg_sys::copyObjectImpl((*entry).expr.cast()).cast();
            let shown = column_behind(node, place);
            let attribute = &*version::attribute((*view).rd_att, (*entry).resno as usize - 1);
            let type_oid = pg_sys::exprType(node);
            pg_sys::ChangeVarNodes(node, place, 1, 0);
            let text = pg_sys::deparse_expression(node, names, true, false);
            columns.push(ViewColumn {
                number: (*entry).resno,
                type_oid,
                expression: CStr::from_ptr(text).to_bytes().to_vec(),
                is_plain: (*node).type_ == pg_sys::NodeTag::T_Var && shown.is_some(),
                has_default: attribute.atthasdef,
                behind: shown.and_then(|number| {
                    behind.iter().find(|column| column.number == number).cloned()
                }),
            });
        }
        let identity = table.row_identity();
        let key: Option<Vec<usize>> = identity
            .iter()
            .map(|number| {
                columns.iter().position(|column| {
                    column.is_plain
                        && column.behind.as_ref().is_some_and(|behind| behind.number == *number)
                })
            })
            .collect();
        let view = View {
            table: table.qualified_name(),
            relation,
            columns,
            key: key.filter(|key| !key.is_empty()),
        };
        table.close();
        Ok(view)
    }
}

/// The column that an expression shows, as it is or as the first argument of a function says it.
unsafe fn column_behind(node: *mut pg_sys::Node, place: i32) -> Option<i16> {
    // SAFETY: a node, read as what its tag says it is.
    unsafe {
        let mut node = node;
        loop {
            node = match (*node).type_ {
                pg_sys::NodeTag::T_Var => {
                    let var = &*node.cast::<pg_sys::Var>();
                    let is_of_table = var.varno == place && var.varlevelsup == 0;
                    return Some(var.varattno).filter(|number| *number > 0 && is_of_table);
                }
                pg_sys::NodeTag::T_RelabelType => (*node.cast::<pg_sys::RelabelType>()).arg.cast(),
                pg_sys::NodeTag::T_FuncExpr => {
                    let arguments = (*node.cast::<pg_sys::FuncExpr>()).args;
                    pgrx::PgList::<pg_sys::Node>::from_pg(arguments).head()?
                }
                _ => return None,
            }
        }
    }
}

/// # Safety
///
/// Both are values of the attribute.
unsafe fn is_same_image(
    attribute: &pg_sys::FormData_pg_attribute,
    one: Datum,
    other: Datum,
) -> bool {
    // SAFETY: by the contract; a length above 0 is that of each value, -1 is a varlena, -2 a C string.
    unsafe {
        match (attribute.attbyval, attribute.attlen) {
            (true, _) => one == other,
            (false, -1) => values::detoasted(one) == values::detoasted(other),
            (false, -2) => {
                CStr::from_ptr(one.cast_mut_ptr()) == CStr::from_ptr(other.cast_mut_ptr())
            }
            (false, length) => {
                let bytes = |datum: Datum| {
                    std::slice::from_raw_parts(
                        datum.cast_mut_ptr::<u8>(),
                        length.unsigned_abs().into(),
                    )
                };
                bytes(one) == bytes(other)
            }
        }
    }
}

fn not_over_one_table() -> Error {
    Error::Declaration {
        problem: "the view is not one over a single table".into(),
        hint: "fieldcrypt.create_decrypted_view makes such views.",
    }
}
