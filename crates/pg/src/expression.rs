//! SQL expressions over the columns of a table, as a CHECK constraint has them: no subqueries, no
//! aggregates.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::heap::{Scan, Table};
use super::owners_code::owners_code;
use super::setting::TemporarySettings;
use super::text_forms::{self, under_fixed_settings};
use super::{lasting, reserve, values, version};
use fieldcrypt_error::Error;

/// An expression that gives a text for each row.
pub struct Expression {
    state: *mut pg_sys::ExprState,
    is_mutable: bool,
}

/// What an expression is like.
pub struct Nature {
    /// It may give another text each time.
    pub is_volatile: bool,
    /// It goes by settings of the session, by the time or by tables, too.
    pub is_mutable: bool,
    /// It names a column.
    pub has_columns: bool,
    /// What it goes by that does not last as long as the row.
    pub flaw: Option<&'static str>,
    /// The expression over the new row of a trigger, as SQL.
    pub of_new: Vec<u8>,
    /// The same over the old row.
    pub of_old: Vec<u8>,
}

/// An expression that was parsed and analysed against the columns of a table.
struct Analysed(*mut pg_sys::Node);

impl Analysed {
    /// With the rights and the search_path of the moment, in the current memory context.
    ///
    /// # Errors
    ///
    /// What Postgres says of an expression that it does not take.
    fn of(relation: pg_sys::Relation, text: &[u8]) -> Result<Self, Error> {
        Self::under(relation, std::ptr::null_mut(), text)
    }

    /// The same over a relation and columns that the text calls by other names; null: by their own.
    fn under(
        relation: pg_sys::Relation,
        names: *mut pg_sys::Alias,
        text: &[u8],
    ) -> Result<Self, Error> {
        as_written(|| Self::analyse(relation, names, text))
    }

    fn analyse(
        relation: pg_sys::Relation,
        names: *mut pg_sys::Alias,
        text: &[u8],
    ) -> Result<Self, Error> {
        let statement = [b"SELECT (".as_slice(), text, b"\n)"].concat();
        let statement = std::ffi::CString::new(statement).map_err(|_| Error::ContextExpression)?;
        // SAFETY: the steps by which Postgres takes in a CHECK constraint: parse, analyse against the
        // relation's columns, coerce. Nodes are read as what their tags say they are.
        unsafe {
            let parsed =
                pg_sys::raw_parser(statement.as_ptr(), pg_sys::RawParseMode::RAW_PARSE_DEFAULT);
            let expression = only_expression(parsed).ok_or(Error::ContextExpression)?;
            let parse_state = pg_sys::make_parsestate(std::ptr::null_mut());
            let item = pg_sys::addRangeTableEntryForRelation(
                parse_state,
                relation,
                pg_sys::AccessShareLock as i32,
                names,
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
            Ok(Self(typed))
        }
    }

    /// With functions in SQL put in place of their calls: only then it shows what it goes by.
    fn planned(&self) -> *mut pg_sys::Node {
        // SAFETY: an analysed expression.
        unsafe { pg_sys::expression_planner(self.0.cast()).cast() }
    }

    /// As SQL, over a row of the relation that is called so.
    fn over(&self, relation: pg_sys::Relation, row: &CStr) -> Vec<u8> {
        self.as_sql(relation, row, true)
    }

    /// As SQL, its columns with the name of the row before them or without.
    fn as_sql(&self, relation: pg_sys::Relation, row: &CStr, is_qualified: bool) -> Vec<u8> {
        // SAFETY: an analysed expression over the one relation; the text is copied.
        as_written(|| unsafe {
            let names = pg_sys::deparse_context_for(row.as_ptr(), (*relation).rd_id);
            let text = pg_sys::deparse_expression(self.0, names, is_qualified, false);
            CStr::from_ptr(text).to_bytes().to_vec()
        })
    }
}

impl Expression {
    /// Parses and prepares it. It lives as long as the executor state.
    pub(super) fn prepare(
        relation: pg_sys::Relation,
        estate: *mut pg_sys::EState,
        text: &[u8],
    ) -> Result<Self, Error> {
        // SAFETY: the state is valid; what is made lies in its memory.
        unsafe {
            let outer = pg_sys::MemoryContextSwitchTo((*estate).es_query_cxt);
            let planned = Analysed::of(relation, text)?.planned();
            let is_mutable = goes_by_settings(planned);
            let state = pg_sys::ExecInitExpr(planned.cast(), std::ptr::null_mut());
            pg_sys::MemoryContextSwitchTo(outer);
            Ok(Self { state, is_mutable })
        }
    }

    /// What an expression over the table's rows is like; an error unless it is one.
    pub fn nature(table: &Table, text: &[u8]) -> Result<Nature, Error> {
        let relation = table.relation();
        let analysed = Analysed::of(relation, text)?;
        let planned = analysed.planned();
        // SAFETY: expressions over the relation. Planned, a cast of a constant is no more seen; analysed, what a function
        // in SQL does is not yet.
        let flaw = unsafe {
            match lasting::flaw(relation, planned)? {
                None if is_null(planned) => Some("the context expression is NULL, for every row"),
                None => lasting::flaw(relation, analysed.0)?,
                found => found,
            }
        };
        // SAFETY: a planned expression.
        unsafe {
            Ok(Nature {
                flaw,
                is_volatile: pg_sys::contain_volatile_functions(planned),
                is_mutable: goes_by_settings(planned),
                has_columns: pg_sys::contain_var_clause(planned),
                of_new: analysed.over(relation, c"new"),
                of_old: analysed.over(relation, c"old"),
            })
        }
    }

    /// An expression that calls the table and its columns by other names, as one that calls them by their own.
    /// `columns` are identifiers, comma-separated, one for each column that is there.
    pub fn with_names_of_now(
        table: &Table,
        text: &[u8],
        old_table: &[u8],
        columns: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let relation = table.relation();
        let list = values::c_string(columns)?;
        let old_table = values::c_string(old_table)?;
        // SAFETY: two C strings in the memory of the moment; the list is of strings that lie in the first.
        let (names, is_list) = unsafe {
            let mut identifiers = std::ptr::null_mut();
            let is_list =
                pg_sys::SplitIdentifierString(list.cast_mut_ptr(), b',' as _, &mut identifiers);
            let mut columns = pgrx::PgList::<pg_sys::String>::new();
            for name in pgrx::PgList::<std::ffi::c_char>::from_pg(identifiers).iter_ptr() {
                columns.push(pg_sys::makeString(name));
            }
            (pg_sys::makeAlias(old_table.cast_mut_ptr(), columns.into_pg()), is_list)
        };
        if !is_list {
            return Err(Error::ContextExpression);
        }
        Ok(Analysed::under(relation, names, text)?.as_sql(relation, c"row", false))
    }

    /// Its value for the row at which the scan stands; `None` is NULL. Allocates in the state's memory
    /// for one row. Where settings have a say, those count that count for all sessions.
    pub(super) fn value(
        &self,
        scan: &Scan,
        estate: *mut pg_sys::EState,
    ) -> Result<Option<Vec<u8>>, Error> {
        // SAFETY: the slot holds a row of the relation that the expression was prepared for, in this state.
        unsafe {
            let context = pg_sys::MakePerTupleExprContext(estate);
            (*context).ecxt_scantuple = scan.slot();
            let mut is_null = false;
            let mut evaluate = || {
                owners_code(|| pg_sys::ExecEvalExprSwitchContext(self.state, context, &mut is_null))
            };
            let datum = if self.is_mutable { under_fixed_settings(evaluate) } else { evaluate() };
            if is_null {
                return Ok(None);
            }
            let text = values::detoasted(datum);
            reserve::room(text.len(), "the context of a row")?;
            Ok(Some(text.to_vec()))
        }
    }
}

/// Runs `work`, which reads or writes an expression as SQL, under the same settings in every session: strings, dates and
/// NULL in it mean what they meant when it was set.
fn as_written<R>(work: impl FnOnce() -> R) -> R {
    under_fixed_settings(|| {
        let guard = TemporarySettings::begin(&[
            (c"standard_conforming_strings", c"on"),
            (c"backslash_quote", c"safe_encoding"),
            (c"transform_null_equals", c"off"),
            (c"array_nulls", c"on"),
            (c"xmloption", c"content"),
            (c"quote_all_identifiers", c"off"),
        ]);
        let result = work();
        guard.end();
        result
    })
}

/// An executor state for expressions alone, over the rows of a scan.
pub struct Evaluation(*mut pg_sys::EState);

impl Evaluation {
    /// Begins it. After an error the memory context of the moment takes it along.
    #[expect(clippy::new_without_default, reason = "it is a child of the context that is current")]
    pub fn new() -> Self {
        // SAFETY: makes a state with memory of its own.
        Self(unsafe { pg_sys::CreateExecutorState() })
    }

    /// Makes an expression over the table's rows ready.
    pub fn prepare(&self, table: &Table, text: &[u8]) -> Result<Expression, Error> {
        owners_code(|| Expression::prepare(table.relation(), self.0, text))
    }

    /// Its value for the row at which the scan stands; `None` is NULL.
    pub fn value(&self, expression: &Expression, scan: &Scan) -> Result<Option<Vec<u8>>, Error> {
        expression.value(scan, self.0)
    }

    /// Empties the memory that a row took.
    pub fn forget_row(&self) {
        // SAFETY: the state's own memory for one row.
        unsafe {
            let context = pg_sys::MakePerTupleExprContext(self.0);
            pg_sys::MemoryContextReset((*context).ecxt_per_tuple_memory);
        }
    }

    /// Gives it back.
    pub fn end(self) {
        // SAFETY: made by `new`, freed once.
        unsafe { pg_sys::FreeExecutorState(self.0) }
    }
}

/// Whether a planned expression is NULL whatever the row.
unsafe fn is_null(planned: *mut pg_sys::Node) -> bool {
    // SAFETY: a planned expression, read as what its tag says it is.
    unsafe {
        (*planned).type_ == pg_sys::NodeTag::T_Const
            && (*planned.cast::<pg_sys::Const>()).constisnull
    }
}

/// Whether what a planned expression gives can depend on more than its columns. What Postgres calls immutable is not
/// enough: output functions of floats, bytes, intervals and of what is made of them are called so, and go by settings.
unsafe fn goes_by_settings(planned: *mut pg_sys::Node) -> bool {
    let mut written: Vec<*mut pg_sys::Node> = Vec::new();
    // SAFETY: a planned expression; the callback runs none of Postgres's code that raises, and the walk is inside a
    // guard whose closure holds nothing that needs dropping.
    unsafe {
        if pg_sys::contain_mutable_functions(planned) {
            return true;
        }
        let found = (&raw mut written).cast();
        pg_sys::ffi::pg_guard_ffi_boundary(|| collect_written(planned, found));
        written.iter().any(|value| text_forms::depends_on_settings(pg_sys::exprType(*value)))
    }
}

/// Collects what is turned into text by output functions.
unsafe extern "C-unwind" fn collect_written(
    node: *mut pg_sys::Node,
    found: *mut std::ffi::c_void,
) -> bool {
    // SAFETY: null or a node, read as what its tag says it is; `found` is the list of `goes_by_settings`.
    unsafe {
        if node.is_null() {
            return false;
        }
        if (*node).type_ == pg_sys::NodeTag::T_CoerceViaIO {
            let argument = (*node.cast::<pg_sys::CoerceViaIO>()).arg;
            (*found.cast::<Vec<*mut pg_sys::Node>>()).push(argument.cast());
        }
        version::expression_tree_walker(node, collect_written, found)
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
