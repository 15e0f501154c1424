//! What a dump says of tables, their columns' types, and the contexts of their values.

use std::collections::HashMap;

use super::expression::Expression;
use super::sql::{self, Cursor, Kind};
use super::values::Type;
use crate::failure::Failure;

/// The columns of `fieldcrypt.column_contexts`, where a dump does not name them.
const CONTEXT_COLUMNS: [&str; 4] = ["table_name", "column_name", "constant", "expression"];
/// How many tables may be above a partition.
const HIGHEST: usize = 100;

/// A table's or a type's names.
type Name = Vec<String>;

/// A context, or why it can't be computed.
pub type Known = Result<Expression, String>;

#[derive(Default)]
pub struct Schema {
    /// The columns of each table, in order.
    tables: HashMap<Name, Vec<(String, Type)>>,
    domains: HashMap<Name, Type>,
    /// The table that another is a part of.
    wholes: HashMap<Name, Name>,
    contexts: HashMap<(Name, String), Known>,
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

    /// The context of a column, its own or that of the whole that it is a part of.
    pub fn context(&self, table: &Name, column: &str) -> Option<Known> {
        let given = self.given.iter().find(|(name, of, _)| table.ends_with(name) && of == column);
        if let Some((_, _, expression)) = given {
            return Some(Ok(expression.clone()));
        }
        let mut table = table.clone();
        for _ in 0..HIGHEST {
            if let Some(known) = self.contexts.get(&(table.clone(), column.to_owned())) {
                return Some(known.clone());
            }
            table = self.wholes.get(&table)?.clone();
        }
        None
    }

    pub fn columns(&self, table: &Name) -> Vec<String> {
        self.tables
            .get(table)
            .map_or_else(Vec::new, |columns| columns.iter().map(|(name, _)| name.clone()).collect())
    }

    pub fn types(&self, table: &Name, columns: &[String]) -> Vec<Type> {
        let known = self.tables.get(table);
        columns
            .iter()
            .map(|column| {
                known
                    .and_then(|known| known.iter().find(|(name, _)| name == column))
                    .map_or(Type::Unknown, |(_, of)| *of)
            })
            .collect()
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
                let values: Vec<_> = row.iter().map(|item| item.value.clone()).collect();
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
        self.contexts.insert((table, column), known);
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
            self.wholes.insert(cursor.names()?, whole);
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
            // What it inherits is not listed here, and of several parents the first counts.
            let parents = cursor.take(b'(').then(|| cursor.names()).flatten()?;
            let mut all = self.tables.get(&parents).cloned().unwrap_or_default();
            all.extend(columns);
            columns = all;
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
    pub value: Option<Vec<u8>>,
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
                    Some(text.clone())
                }
                [Kind::Number(number)] => Some(number.clone().into_bytes()),
                [Kind::Mark(b'-'), Kind::Number(number)] => Some(format!("-{number}").into_bytes()),
                [Kind::Word(word)] if word == "true" || word == "false" => Some(word[..1].into()),
                _ => None,
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
