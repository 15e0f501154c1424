//! What a dump says of tables, their columns' types, and the contexts of their values.

use std::collections::{HashMap, HashSet, VecDeque};

use super::expression::Expression;
use super::sql::{self, Cursor, Kind};
use super::values::{Field, Type};
use crate::failure::Failure;

/// The columns of `fieldcrypt.column_contexts`, where a dump does not name them.
const CONTEXT_COLUMNS: [&str; 4] = ["table_name", "column_name", "constant", "expression"];
/// A table's or a type's names.
type Name = Vec<String>;

/// A context, or why it can't be computed.
pub type Known = Result<Expression, String>;

#[derive(Default)]
pub struct Schema {
    /// The columns of each table, in order, without those that it inherits.
    tables: HashMap<Name, Vec<(String, Type)>>,
    domains: HashMap<Name, Type>,
    /// The tables that another is a part of.
    wholes: HashMap<Name, Vec<Name>>,
    /// By column and table.
    contexts: HashMap<String, HashMap<Name, Known>>,
    given: Vec<(Name, String, Expression)>,
}

impl Schema {
    pub fn new(column_contexts: &[String]) -> Result<Self, Failure> {
        let mut schema = Self::default();
        for argument in column_contexts {
            let problem = || {
                Failure::usage(format!(
                    "--column-context takes SCHEMA.TABLE.COLUMN=TEMPLATE for a dump, COLUMN=TEMPLATE with --csv; not \"{argument}\""
                ))
            };
            let (column, template) = argument.split_once('=').ok_or_else(problem)?;
            let mut names = names_of(column).filter(|names| names.len() > 1).ok_or_else(problem)?;
            let expression = Expression::of_template(template).ok_or_else(|| {
                Failure::usage(format!("a brace without its other in \"{template}\""))
            })?;
            let column = names.pop().unwrap_or_default();
            schema.given.push((names, column, expression));
        }
        Ok(schema)
    }

    /// Whether any column has a context.
    pub fn has_contexts(&self) -> bool {
        !self.contexts.is_empty() || !self.given.is_empty()
    }

    /// The context of a column, its own or that of the nearest whole that it is a part of.
    pub fn context(&self, table: &Name, column: &str) -> Option<Known> {
        let given = self.given.iter().find(|(name, of, _)| table.ends_with(name) && of == column);
        if let Some((_, _, expression)) = given {
            return Some(Ok(expression.clone()));
        }
        let of_column = self.contexts.get(column)?;
        let mut seen = HashSet::from([table]);
        let mut next = VecDeque::from([table]);
        while let Some(table) = next.pop_front() {
            if let Some(known) = of_column.get(table) {
                return Some(known.clone());
            }
            next.extend(self.wholes_of(table).filter(|whole| seen.insert(whole)));
        }
        None
    }

    fn wholes_of(&self, table: &Name) -> impl DoubleEndedIterator<Item = &Name> {
        self.wholes.get(table).into_iter().flatten()
    }

    pub fn columns(&self, table: &Name) -> Vec<String> {
        self.all_columns(table).map(|(name, _)| name.clone()).collect()
    }

    pub fn types(&self, table: &Name, columns: &[String]) -> Vec<Type> {
        let known: HashMap<&String, Type> =
            self.all_columns(table).map(|(name, of)| (name, *of)).collect();
        columns.iter().map(|column| known.get(column).copied().unwrap_or(Type::Unknown)).collect()
    }

    /// The columns of a table: those that it inherits, parent by parent, and its own. One of the same name is the same.
    fn all_columns<'s>(&'s self, table: &'s Name) -> impl Iterator<Item = &'s (String, Type)> {
        let mut seen = HashSet::new();
        let mut in_order = Vec::new();
        // Each table twice: its parents, then itself. No recursion: a chain may be long.
        let mut next = vec![(table, false)];
        while let Some((table, is_after_parents)) = next.pop() {
            if is_after_parents {
                in_order.push(table);
            } else if seen.insert(table) {
                next.push((table, true));
                next.extend(self.wholes_of(table).rev().map(|whole| (whole, false)));
            }
        }
        let mut names = HashSet::new();
        in_order
            .into_iter()
            .filter_map(|table| self.tables.get(table))
            .flatten()
            .filter(move |(name, _)| names.insert(name))
    }

    /// A row of COPY's data, if it is a context.
    pub fn learn_row(&mut self, table: &Name, columns: &[String], line: &[u8]) {
        if is_contexts(table) {
            self.learn_context(
                columns,
                &line.split(|it| *it == b'\t').map(sql::copied).collect::<Vec<_>>(),
            );
        }
    }

    /// An INSERT, if it is of contexts.
    pub fn learn_insert(&mut self, insert: &Insert) {
        if is_contexts(&insert.table) {
            let columns = insert
                .columns
                .clone()
                .unwrap_or_else(|| CONTEXT_COLUMNS.map(str::to_owned).to_vec());
            for row in &insert.rows {
                let values: Vec<_> = row
                    .iter()
                    .map(|item| match &item.value {
                        Field::Written(written) => Some(written.clone()),
                        Field::Null | Field::Unknown => None,
                    })
                    .collect();
                self.learn_context(&columns, &values);
            }
        }
    }

    fn learn_context(&mut self, columns: &[String], values: &[Option<Vec<u8>>]) {
        let value = |wanted: &str| {
            let index = columns.iter().position(|name| name == wanted)?;
            String::from_utf8(values.get(index)?.clone()?).ok()
        };
        let (Some(table), Some(column)) = (value("table_name"), value("column_name")) else {
            return;
        };
        let Some(table) = names_of(&table) else { return };
        let known = match (value("constant"), value("expression")) {
            (Some(constant), _) => Ok(Expression::constant(&constant)),
            (None, Some(expression)) => Expression::parse(&expression)
                .map_err(|why| format!("{why}, in: {}", clipped(&expression))),
            (None, None) => return,
        };
        self.contexts.entry(column).or_default().insert(table, known);
    }

    /// What a definition says, if it is one of those that matter here.
    pub fn learn_definition(&mut self, text: &[u8]) {
        let Some(tokens) = sql::tokens(text) else { return };
        let mut cursor = Cursor::new(&tokens);
        if cursor.word("alter") {
            let _ = self.learn_part(&mut cursor);
        } else if cursor.word("create") {
            if cursor.word("domain") {
                let _ = self.learn_domain(&mut cursor);
            } else {
                let _ = cursor.word("unlogged") || cursor.word("foreign");
                if cursor.word("table") {
                    let _ = self.learn_table(&mut cursor);
                }
            }
        }
    }

    /// `TABLE ONLY whole ATTACH PARTITION part …`
    fn learn_part(&mut self, cursor: &mut Cursor<'_>) -> Option<()> {
        let _ = cursor.word("table") && cursor.word("only");
        let whole = cursor.names()?;
        if cursor.word("attach") && cursor.word("partition") {
            self.wholes.insert(cursor.names()?, vec![whole]);
        }
        Some(())
    }

    fn learn_domain(&mut self, cursor: &mut Cursor<'_>) -> Option<()> {
        let name = cursor.names()?;
        if cursor.word("as") {
            let of = self.type_of(cursor)?;
            self.domains.insert(name, of);
        }
        Some(())
    }

    fn learn_table(&mut self, cursor: &mut Cursor<'_>) -> Option<()> {
        let name = cursor.names()?;
        let mut columns = Vec::new();
        if !cursor.take(b'(') {
            return None;
        }
        loop {
            if cursor.take(b')') {
                break;
            }
            if !cursor.word("constraint") {
                let column = cursor.next()?.name()?.to_owned();
                columns.push((column, self.type_of(cursor)?));
            }
            if !cursor.skip_item()? {
                break;
            }
        }
        if cursor.word("inherits") {
            // What it inherits is not listed here.
            let mut parents = Vec::new();
            let mut goes_on = cursor.take(b'(');
            while goes_on {
                parents.push(cursor.names()?);
                goes_on = cursor.take(b',');
            }
            self.wholes.insert(name.clone(), parents);
        }
        self.tables.insert(name, columns);
        Some(())
    }

    fn type_of(&self, cursor: &mut Cursor<'_>) -> Option<Type> {
        let (names, _) = Type::read(cursor)?;
        let domain = || self.domains.get(&names).copied();
        Some(Type::of(&names).or_else(domain).unwrap_or(Type::Other))
    }
}

fn is_contexts(table: &Name) -> bool {
    *table == ["fieldcrypt", "column_contexts"]
}

fn clipped(text: &str) -> String {
    if text.chars().count() <= 200 {
        text.into()
    } else {
        text.chars().take(200).chain("...".chars()).collect()
    }
}

/// `schema.table` as its names.
fn names_of(text: &str) -> Option<Name> {
    let tokens = sql::tokens(text.as_bytes())?;
    let mut cursor = Cursor::new(&tokens);
    let names = cursor.names()?;
    cursor.peek().is_none().then_some(names)
}

/// Whether a line begins a definition that matters here.
pub fn is_definition(line: &[u8]) -> bool {
    [
        &b"CREATE TABLE "[..],
        b"CREATE UNLOGGED TABLE ",
        b"CREATE FOREIGN TABLE ",
        b"CREATE DOMAIN ",
        b"ALTER TABLE ",
    ]
    .iter()
    .any(|start| line.starts_with(start))
}

/// `COPY table (columns) FROM stdin;`
pub fn copy_header(line: &[u8]) -> Option<(Name, Vec<String>)> {
    let tokens = sql::tokens(line)?;
    let mut cursor = Cursor::new(&tokens);
    if !cursor.word("copy") {
        return None;
    }
    let table = cursor.names()?;
    let columns = cursor.list_of_names()?;
    (cursor.word("from") && cursor.word("stdin") && cursor.take(b';') && cursor.peek().is_none())
        .then_some((table, columns))
}

/// Whether pg_dump would write this without quotes.
fn is_number(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    digits.first().is_some_and(u8::is_ascii_digit)
        && digits.iter().all(|byte| byte.is_ascii_digit() || b".e+-".contains(byte))
}

/// An INSERT with VALUES.
pub struct Insert {
    pub table: Name,
    pub columns: Option<Vec<String>>,
    pub rows: Vec<Vec<Item>>,
}

/// A value in it: where it stands, and what it is as text.
pub struct Item {
    pub start: usize,
    pub end: usize,
    pub value: Field,
}

pub fn insert(text: &[u8]) -> Option<Insert> {
    let tokens = sql::tokens(text)?;
    let mut cursor = Cursor::new(&tokens);
    if !(cursor.word("insert") && cursor.word("into")) {
        return None;
    }
    let table = cursor.names()?;
    let columns = match cursor.peek()? {
        Kind::Mark(b'(') => Some(cursor.list_of_names()?),
        _ => None,
    };
    if cursor.word("overriding") {
        cursor.next()?;
        cursor.next()?;
    }
    if !cursor.word("values") {
        return None;
    }
    let mut rows = Vec::new();
    loop {
        if !cursor.take(b'(') {
            return None;
        }
        let mut row = Vec::new();
        loop {
            let first = cursor.at;
            let goes_on = cursor.skip_item()?;
            let item = tokens.get(first..cursor.at.checked_sub(1)?)?;
            let (start, end) = (item.first()?.start, item.last()?.end);
            let kinds: Vec<&Kind> = item.iter().map(|token| &token.kind).collect();
            let value = match kinds.as_slice() {
                [Kind::Text(text)] | [Kind::Text(text), Kind::Mark(b':'), Kind::Mark(b':'), ..] => {
                    Field::Written(text.clone())
                }
                [Kind::Word(word)] if word == "true" || word == "false" => {
                    Field::Written(word[..1].into())
                }
                [Kind::Word(word)] if word == "null" => Field::Null,
                // As the type's output function wrote it: 1e+20, too.
                _ if is_number(&text[start..end]) => Field::Written(text[start..end].to_vec()),
                _ => Field::Unknown,
            };
            row.push(Item { start, end, value });
            if !goes_on {
                break;
            }
        }
        rows.push(row);
        if !cursor.take(b',') {
            return Some(Insert { table, columns, rows });
        }
    }
}
