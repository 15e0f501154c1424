//! SQL expressions over the columns of a table, as a CHECK constraint has them: no subqueries, no
//! aggregates.

use pgrx::pg_sys;

use super::heap::{Scan, Table};
use super::owners_code::owners_code;
use super::{reserve, values};
use fieldcrypt_error::Error;

/// An expression that gives a text for each row.
pub struct Expression {
    state: *mut pg_sys::ExprState,
}

impl Expression {
    /// Parses and prepares it, with the rights and the search_path of the moment. It lives as long as
    /// the executor state.
    ///
    /// # Errors
    ///
    /// What Postgres says of an expression that it does not take.
    pub(super) fn prepare(
        relation: pg_sys::Relation,
        estate: *mut pg_sys::EState,
        text: &[u8],
    ) -> Result<Self, Error> {
        let statement = [b"SELECT (".as_slice(), text, b"\n)"].concat();
        let statement = std::ffi::CString::new(statement).map_err(|_| Error::ContextExpression)?;
        // SAFETY: the steps by which Postgres takes in a CHECK constraint: parse, analyse against the
        // relation's columns, coerce, plan. Nodes are read as what their tags say they are.
        unsafe {
            let outer = pg_sys::MemoryContextSwitchTo((*estate).es_query_cxt);
            let parsed =
                pg_sys::raw_parser(statement.as_ptr(), pg_sys::RawParseMode::RAW_PARSE_DEFAULT);
            let expression = only_expression(parsed).ok_or(Error::ContextExpression)?;
            let parse_state = pg_sys::make_parsestate(std::ptr::null_mut());
            let item = pg_sys::addRangeTableEntryForRelation(
                parse_state,
                relation,
                pg_sys::AccessShareLock as i32,
                std::ptr::null_mut(),
                false,
                true,
            );
            pg_sys::addNSItemToQuery(parse_state, item, true, true, true);
            let typed = pg_sys::transformExpr(
                parse_state,
                expression,
                pg_sys::ParseExprKind::EXPR_KIND_CHECK_CONSTRAINT,
            );
            let typed = pg_sys::coerce_to_target_type(
                parse_state,
                typed,
                pg_sys::exprType(typed),
                pg_sys::TEXTOID,
                -1,
                pg_sys::CoercionContext::COERCION_ASSIGNMENT,
                pg_sys::CoercionForm::COERCE_IMPLICIT_CAST,
                -1,
            );
            if typed.is_null() {
                return Err(Error::ContextExpression);
            }
            pg_sys::assign_expr_collations(parse_state, typed);
            pg_sys::free_parsestate(parse_state);
            let state = pg_sys::ExecPrepareExpr(typed.cast(), estate);
            pg_sys::MemoryContextSwitchTo(outer);
            Ok(Self { state })
        }
    }

    /// An error unless a text is an expression over the table's rows.
    pub fn check(table: &Table, text: &[u8]) -> Result<(), Error> {
        // SAFETY: a state of its own, freed after use.
        unsafe {
            let estate = pg_sys::CreateExecutorState();
            Self::prepare(table.relation(), estate, text)?;
            pg_sys::FreeExecutorState(estate);
        }
        Ok(())
    }

    /// Its value for the row at which the scan stands; `None` is NULL. Allocates in the state's memory
    /// for one row.
    pub fn value(
        &self,
        scan: &Scan,
        update: &super::row_update::RowUpdate,
    ) -> Result<Option<Vec<u8>>, Error> {
        // SAFETY: the slot holds a row of the relation that the expression was prepared for.
        unsafe {
            let context = pg_sys::MakePerTupleExprContext(update.state());
            (*context).ecxt_scantuple = scan.slot();
            let mut is_null = false;
            let datum = owners_code(|| {
                pg_sys::ExecEvalExprSwitchContext(self.state, context, &mut is_null)
            });
            if is_null {
                return Ok(None);
            }
            let text = values::detoasted(datum);
            reserve::room(text.len(), "the context of a row")?;
            Ok(Some(text.to_vec()))
        }
    }
}

/// The one expression of `SELECT (expression)`; `None` if the text was more than that.
unsafe fn only_expression(parsed: *mut pg_sys::List) -> Option<*mut pg_sys::Node> {
    // SAFETY: a list of RawStmt, as the parser gives; nodes are cast after their tags were read.
    unsafe {
        let statements = pgrx::PgList::<pg_sys::RawStmt>::from_pg(parsed);
        let [statement] = statements.iter_ptr().collect::<Vec<_>>()[..] else { return None };
        let select = (*statement).stmt;
        if (*select).type_ != pg_sys::NodeTag::T_SelectStmt {
            return None;
        }
        let select = select.cast::<pg_sys::SelectStmt>();
        let is_plain = (*select).op == pg_sys::SetOperation::SETOP_NONE
            && [
                (*select).distinctClause,
                (*select).fromClause,
                (*select).groupClause,
                (*select).windowClause,
                (*select).valuesLists,
                (*select).sortClause,
                (*select).lockingClause,
            ]
            .iter()
            .all(|list| list.is_null())
            && (*select).whereClause.is_null()
            && (*select).havingClause.is_null()
            && (*select).limitOffset.is_null()
            && (*select).limitCount.is_null()
            && (*select).intoClause.is_null()
            && (*select).withClause.is_null();
        if !is_plain {
            return None;
        }
        let targets = pgrx::PgList::<pg_sys::ResTarget>::from_pg((*select).targetList);
        let [target] = targets.iter_ptr().collect::<Vec<_>>()[..] else { return None };
        ((*target).name.is_null() && (*target).indirection.is_null()).then_some((*target).val)
    }
}
