//! A plain dump of `pg_dump`, in which values are bound to their rows: the contexts of their columns are in the same
//! dump, in `fieldcrypt.column_contexts`, and so are the columns that they are made of.
//!
//! Two passes over a file: the contexts may come after the values. What is no dump is copied with its values opened.

mod expression;
mod schema;
mod sql;
mod values;

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::path::Path;

use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::opener::{self, Opener};
use crate::{Escape, tokens};

use expression::Expression;
use schema::Schema;
use values::Field;

/// More than a definition of a table has; what goes on longer is none.
const LONGEST_DEFINITION: usize = 1 << 24;

/// What is known of a dump.
pub struct Dump {
    schema: Schema,
    is_one: bool,
    /// A statement in it was not understood; it may have swallowed contexts.
    has_riddles: bool,
    /// Columns of which values were left, and how many.
    left: BTreeMap<String, (u64, String)>,
    /// Columns without a context up to there, of which values were opened, and how many.
    opened: BTreeMap<(Vec<String>, String), u64>,
}

/// How values are opened.
pub struct Opening<'o, 'k> {
    pub opener: &'o mut Opener<'k>,
    /// The context of values that have no other.
    pub context: &'o str,
    /// Somebody named it.
    pub is_given: bool,
    pub escape: Escape,
}

/// Where in a dump the reader is.
enum State {
    Text,
    /// Inside of quotes: a function's body, a comment. What looks like data there is none.
    Quoted(sql::Quotes),
    /// In the data of a COPY.
    Copy {
        plan: Plan,
        has_returns: bool,
    },
    /// In a statement that is read whole.
    Statement {
        text: Zeroizing<Vec<u8>>,
        quotes: sql::Quotes,
        is_insert: bool,
    },
}

/// The columns of a table as they follow on each other, and the contexts of their values.
struct Plan {
    table: Vec<String>,
    columns: Vec<String>,
    contexts: Vec<Context>,
    is_needed: Vec<bool>,
}

/// What is known of the context of a column.
enum Context {
    /// It has none.
    None,
    Known(Expression),
    /// It has one, but it can't be computed here.
    Unknown(String),
}

impl Dump {
    /// With contexts of columns (`schema.table.column=template`) that come before those of the dump.
    pub fn new(column_contexts: &[String]) -> Result<Self, Failure> {
        let schema = Schema::new(column_contexts)?;
        Ok(Self {
            schema,
            is_one: false,
            has_riddles: false,
            left: BTreeMap::new(),
            opened: BTreeMap::new(),
        })
    }

    /// The first pass: what the dump says of tables and contexts.
    pub fn learn(&mut self, input: impl BufRead, name: &Path) -> Result<(), Failure> {
        self.pass(input, name, |_, _| Ok(()))
    }

    /// Whether what was read was a dump.
    pub fn is_one(&self) -> bool {
        self.is_one
    }

    /// The second pass: copies the dump with its values opened.
    pub fn open(
        &mut self,
        input: impl BufRead,
        mut output: impl Write,
        name: &Path,
        opening: &mut Opening<'_, '_>,
    ) -> Result<(), Failure> {
        self.pass(input, name, |dump, piece| {
            let written = match piece {
                Piece::Text(text) => dump.outside(text, opening),
                Piece::Row(plan, line) => dump.row(plan, line, opening),
                Piece::Insert(text) => dump.insert(text, opening),
            };
            output.write_all(&written).map_err(Failure::Output)
        })?;
        output.flush().map_err(Failure::Output)
    }

    /// What was left in which column, and what helps.
    pub fn problems(&self) -> Vec<String> {
        self.left
            .iter()
            .map(|(column, (count, why))| format!("{column}: {count} left: {why}"))
            .chain(self.opened_too_early().map(|(table, column, count)| {
                format!(
                    "{}.{column}: {count} opened before the dump gave its context: they may be of other rows; give the dump as a file",
                    table.join(".")
                )
            }))
            .collect()
    }

    /// Whether each value that was opened was of its place.
    pub fn is_sound(&self) -> bool {
        self.opened_too_early().next().is_none()
    }

    /// Columns of which values were opened without the context that they have, as the rest of the dump says.
    fn opened_too_early(&self) -> impl Iterator<Item = (&Vec<String>, &String, u64)> {
        self.opened
            .iter()
            .filter(|((table, column), _)| self.schema.context(table, column).is_some())
            .map(|((table, column), count)| (table, column, *count))
    }

    /// Reads line by line, learns, and calls `with` with each piece.
    fn pass(
        &mut self,
        mut input: impl BufRead,
        name: &Path,
        mut with: impl FnMut(&mut Self, Piece<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut state = State::Text;
        let mut line = Vec::new();
        loop {
            line.clear();
            let length =
                input.read_until(b'\n', &mut line).map_err(|error| Failure::file(name, error))?;
            if length == 0 {
                break;
            }
            state = match state {
                State::Text => self.text(&line, &mut with)?,
                State::Quoted(mut quotes) => {
                    with(self, Piece::Text(&line))?;
                    quotes.read(&line);
                    if quotes.is_open() { State::Quoted(quotes) } else { State::Text }
                }
                State::Copy { plan, has_returns } => {
                    if line.trim_ascii_end() == b"\\." {
                        with(self, Piece::Text(&line))?;
                        State::Text
                    } else {
                        self.schema.learn_row(
                            &plan.table,
                            &plan.columns,
                            content(&line, has_returns),
                        );
                        with(self, Piece::Row(&plan, content(&line, has_returns)))?;
                        let end = &line[content(&line, has_returns).len()..];
                        with(self, Piece::Text(end))?;
                        State::Copy { plan, has_returns }
                    }
                }
                State::Statement { mut text, mut quotes, is_insert } => {
                    text.extend_from_slice(&line);
                    if quotes.read(&line) {
                        self.statement(&text, is_insert, &mut with)?
                    } else if !is_insert && text.len() > LONGEST_DEFINITION {
                        with(self, Piece::Text(&text))?;
                        if quotes.is_open() { State::Quoted(quotes) } else { State::Text }
                    } else {
                        State::Statement { text, quotes, is_insert }
                    }
                }
            };
        }
        match state {
            State::Statement { text, is_insert, .. } => {
                self.is_one |= is_insert;
                self.has_riddles = true;
                with(self, Piece::Text(&text))
            }
            _ => Ok(()),
        }
    }

    /// A line between statements, and what follows on it.
    fn text(
        &mut self,
        line: &[u8],
        with: &mut impl FnMut(&mut Self, Piece<'_>) -> Result<(), Failure>,
    ) -> Result<State, Failure> {
        let is_insert = line.starts_with(b"INSERT INTO ");
        let mut quotes = sql::Quotes::default();
        if is_insert || line.starts_with(b"COPY ") || schema::is_definition(line) {
            if quotes.read(line) {
                return self.statement(line, is_insert, with);
            }
            let text = Zeroizing::new(line.to_vec());
            return Ok(State::Statement { text, quotes, is_insert });
        }
        with(self, Piece::Text(line))?;
        // A command of psql is a line.
        if !line.starts_with(b"\\") {
            quotes.read(line);
        }
        Ok(if quotes.is_open() { State::Quoted(quotes) } else { State::Text })
    }

    fn statement(
        &mut self,
        text: &[u8],
        is_insert: bool,
        with: &mut impl FnMut(&mut Self, Piece<'_>) -> Result<(), Failure>,
    ) -> Result<State, Failure> {
        if is_insert {
            self.is_one = true;
            if find(text, b"column_contexts").is_some()
                && let Some(insert) = schema::insert(text)
            {
                self.schema.learn_insert(&insert);
            }
            with(self, Piece::Insert(text))?;
            return Ok(State::Text);
        }
        with(self, Piece::Text(text))?;
        if !text.starts_with(b"COPY ") {
            self.schema.learn_definition(text);
        } else if text.trim_ascii_end().ends_with(b" FROM stdin;") {
            // Data follow in any case, and look like what whoever wrote them wants.
            self.is_one = true;
            let (table, columns) = schema::copy_header(text).unwrap_or_default();
            let plan = self.plan(table, columns);
            return Ok(State::Copy { plan, has_returns: text.ends_with(b"\r\n") });
        }
        Ok(State::Text)
    }

    fn plan(&self, table: Vec<String>, columns: Vec<String>) -> Plan {
        let types = self.schema.types(&table, &columns);
        let contexts: Vec<Context> = columns
            .iter()
            .map(|column| match self.schema.context(&table, column) {
                None => Context::None,
                Some(Ok(expression)) => match expression.bound(&columns, &types) {
                    Ok(expression) => Context::Known(expression),
                    Err(why) => Context::Unknown(why),
                },
                Some(Err(why)) => Context::Unknown(why.clone()),
            })
            .collect();
        let is_needed = (0..columns.len())
            .map(|index| {
                contexts.iter().any(|it| matches!(it, Context::Known(it) if it.needs(index)))
            })
            .collect();
        Plan { table, columns, contexts, is_needed }
    }

    fn row(
        &mut self,
        plan: &Plan,
        line: &[u8],
        opening: &mut Opening<'_, '_>,
    ) -> Zeroizing<Vec<u8>> {
        if find(line, b"fc1:").is_none() {
            return Zeroizing::new(line.to_vec());
        }
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b'\t').collect();
        if fields.len() != plan.columns.len() {
            return self.outside(line, opening);
        }
        let row: Vec<Field> = fields
            .iter()
            .zip(&plan.is_needed)
            .map(|(field, is_needed)| match sql::copied(field) {
                _ if !is_needed => Field::Unknown,
                Some(written) => Field::Written(written),
                None => Field::Null,
            })
            .collect();
        let mut out = Zeroizing::new(Vec::with_capacity(line.len()));
        for (index, field) in fields.iter().enumerate() {
            if index > 0 {
                out.push(b'\t');
            }
            out.extend_from_slice(&self.field(plan, index, field, &row, opening));
        }
        out
    }

    fn field(
        &mut self,
        plan: &Plan,
        index: usize,
        field: &[u8],
        row: &[Field],
        opening: &mut Opening<'_, '_>,
    ) -> Zeroizing<Vec<u8>> {
        if find(field, b"fc1:").is_none() {
            return Zeroizing::new(field.to_vec());
        }
        // What a column's values are bound to decides alone: a value that was brought from elsewhere stays closed.
        let (context, is_own) = match plan.contexts.get(index) {
            Some(Context::Known(expression)) => (expression.of(row), true),
            Some(Context::Unknown(_)) => (None, true),
            Some(Context::None) | None => (Some(opening.context.to_owned()), false),
        };
        let (written, counts) = opened(field, context.as_deref(), opening);
        if counts.left > 0 {
            self.note(plan, index, context.is_some(), counts.left);
        }
        if !is_own && counts.opened > 0 {
            let column = plan.columns.get(index).cloned().unwrap_or_default();
            *self.opened.entry((plan.table.clone(), column)).or_default() += counts.opened;
        }
        written
    }

    /// What is in no row that was understood. If values of the dump are bound, one of these may be, too: only a context that
    /// somebody gave opens it.
    fn outside(&mut self, text: &[u8], opening: &mut Opening<'_, '_>) -> Zeroizing<Vec<u8>> {
        let is_bound = (self.schema.has_contexts() || self.has_riddles) && !opening.is_given;
        let (written, counts) = opened(text, (!is_bound).then_some(opening.context), opening);
        if counts.left > 0 {
            let why = "they are in no row whose columns are known; --context opens them, even if it is ''";
            self.left.entry("outside of rows".into()).or_insert((0, why.into())).0 += counts.left;
        }
        written
    }

    fn note(&mut self, plan: &Plan, index: usize, has_context: bool, left: u64) {
        let column = plan.columns.get(index).map_or("?", String::as_str);
        let name = format!("{}.{column}", plan.table.join("."));
        let way = format!(
            "give it with --column-context '{name}=TEMPLATE', where {{id}} is the row's column id"
        );
        let why = match plan.contexts.get(index) {
            Some(Context::Unknown(why)) => {
                format!("its context can't be computed here ({why}); {way}")
            }
            Some(Context::Known(_)) if has_context => {
                "they do not open with the context of their row".into()
            }
            Some(Context::Known(_)) => {
                format!(
                    "the context of their row is NULL, too long or of a form that can't be computed here; {way}"
                )
            }
            _ => format!("the dump holds no context of it up to here; if it has one, {way}"),
        };
        self.left.entry(name).or_insert((0, why)).0 += left;
    }

    fn insert(&mut self, text: &[u8], opening: &mut Opening<'_, '_>) -> Zeroizing<Vec<u8>> {
        let Some(insert) = schema::insert(text) else {
            self.has_riddles = true;
            return self.outside(text, opening);
        };
        let columns = match insert.columns {
            Some(columns) => columns,
            None => self.schema.columns(&insert.table),
        };
        let plan = self.plan(insert.table, columns);
        let mut out = Zeroizing::new(Vec::with_capacity(text.len()));
        let mut at = 0;
        for items in &insert.rows {
            let row: Vec<Field> = items.iter().map(|item| item.value.clone()).collect();
            let is_known = items.len() == plan.columns.len();
            for (index, item) in items.iter().enumerate() {
                out.extend_from_slice(&text[at..item.start]);
                let written = &text[item.start..item.end];
                out.extend_from_slice(&if is_known {
                    self.field(&plan, index, written, &row, opening)
                } else {
                    self.outside(written, opening)
                });
                at = item.end;
            }
        }
        out.extend_from_slice(&text[at..]);
        out
    }
}

/// What of a dump is handed on.
enum Piece<'p> {
    Text(&'p [u8]),
    /// A row of COPY's data, without the end of its line.
    Row(&'p Plan, &'p [u8]),
    Insert(&'p [u8]),
}

#[derive(Default)]
struct Counts {
    opened: u64,
    left: u64,
}

/// A text with its values opened, and how many were. Without a context all are left but those that carry their place.
fn opened(
    text: &[u8],
    context: Option<&str>,
    opening: &mut Opening<'_, '_>,
) -> (Zeroizing<Vec<u8>>, Counts) {
    let mut counts = Counts::default();
    let escape = opening.escape;
    let opener = &mut *opening.opener;
    let written = tokens::replace_in(text, |token| {
        let plaintext = opener.open(token, context);
        *if plaintext.is_some() { &mut counts.opened } else { &mut counts.left } += 1;
        plaintext.map(|plaintext| opener::escaped(&plaintext, escape))
    });
    // Nothing but memory is written to.
    (written.unwrap_or_else(|_| Zeroizing::new(text.to_vec())), counts)
}

/// A line without its end.
fn content(line: &[u8], has_returns: bool) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    if has_returns { line.strip_suffix(b"\r").unwrap_or(line) } else { line }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|it| it == wanted)
}
