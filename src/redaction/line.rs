//! A record of the server log: whether it may hold literals, and what is left of it without them.

use fieldcrypt_sql_text::messages::{Record, mask_processes};
use fieldcrypt_sql_text::{OutOfMemory, Text, executed_statements, mask, mask_plan};

use super::concerns;
use crate::pg::statements;

/// The file names that the extension's own reports carry.
const OWN_FILE: &[u8] = b"pg_fieldcrypt";

/// How CONTEXT begins where a function of the extension speaks.
const OWN_FUNCTIONS: [&[u8]; 2] =
    [b"PL/pgSQL function fieldcrypt.", b"PL/pgSQL function fieldcrypt_internal."];

/// How alerts begin: CONTEXT is in the language of the server, and quoted as `quote_all_identifiers` says.
const OWN_MESSAGES: [&[u8]; 2] = [b"fieldcrypt alert: ", b"fieldcrypt alert resolved: "];

/// A record as Postgres is about to write it. Texts are in the database's encoding.
pub struct Line<'r> {
    /// The message.
    pub message: &'r [u8],
    /// The message before values were put in and it was translated.
    pub message_format: Option<&'r [u8]>,
    /// DETAIL for log and client.
    pub detail: Option<&'r [u8]>,
    /// DETAIL for the log alone.
    pub detail_log: Option<&'r [u8]>,
    /// HINT.
    pub hint: Option<&'r [u8]>,
    /// CONTEXT, if it is to be written.
    pub context: Option<&'r [u8]>,
    /// QUERY.
    pub internal_query: Option<&'r [u8]>,
    /// STATEMENT, if it is to be written.
    pub statement: Option<&'r [u8]>,
    /// The client's statement, whether it is to be written or not.
    pub running: &'r [u8],
    /// Whether its level is LOG.
    pub is_log: bool,
    /// The source file that it comes from.
    pub file: &'r [u8],
    /// Whether it is in another language than English.
    pub is_translated: bool,
    /// Names that it carries: of the table, then others.
    pub names: [&'r [u8]; 5],
}

/// What is to be written instead. Each text ends with a zero byte.
#[derive(Default)]
pub struct Masked {
    /// The message.
    pub message: Option<Text>,
    /// DETAIL.
    pub detail: Option<Text>,
    /// DETAIL for the log alone.
    pub detail_log: Option<Text>,
    /// HINT.
    pub hint: Option<Text>,
    /// CONTEXT.
    pub context: Option<Text>,
    /// QUERY.
    pub internal_query: Option<Text>,
    /// STATEMENT.
    pub statement: Option<Text>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// "statement: ...", "duration: ... execute p: ...": ends with a statement.
    Statement,
    /// "duration: ... plan:", of auto_explain.
    Plan,
    /// "parse tree:", of debug_print_parse and the like.
    Tree,
    /// What log_executor_stats and the like count.
    Statistics,
    /// "Process 1 waits ...", with the statements of others.
    Deadlock,
    /// A line with a statement, of a library that is known to write such: pgaudit, pg_cron.
    Library,
    /// Anything else.
    Message,
}

impl Line<'_> {
    /// Whether there is anything to mask, whatever it is about.
    pub fn may_hold_literals(&self) -> bool {
        if self.file == OWN_FILE {
            return false;
        }
        let [table, ..] = self.names;
        self.kind() != Kind::Message
            || self.statement.is_some()
            || self.internal_query.is_some()
            || self.context.is_some()
            || !table.is_empty()
            || (!self.running.is_empty() && !self.is_log)
    }

    /// Whether this is written between parsing a statement and running it, where the catalogs may be
    /// read. Anywhere else in a log line may be in the middle of anything.
    pub fn is_begin_of_statement(&self) -> bool {
        self.kind() == Kind::Statement
            && !self.message_format.is_some_and(|format| format.starts_with(b"duration: "))
    }

    /// Whether it concerns encrypted values.
    pub fn concerns(&self) -> bool {
        let with_statements =
            |text, kinds: &[Kind]| if kinds.contains(&self.kind()) { text } else { &b""[..] };
        let texts = [
            self.running,
            self.internal_query.unwrap_or_default(),
            self.context.unwrap_or_default(),
            with_statements(self.message, &[Kind::Statement, Kind::Plan, Kind::Library]),
            with_statements(self.detail.unwrap_or_default(), &[Kind::Statement]),
            with_statements(self.detail_log.unwrap_or_default(), &[Kind::Deadlock]),
        ];
        let [table, ..] = self.names;
        concerns(&texts, &[table])
            || executed_statements(self.running)
                .any(|name| statements::prepared(&name).is_some_and(|text| concerns(&[text], &[])))
    }

    /// Masks everything that it holds.
    pub fn masked(&self) -> Result<Masked, OutOfMemory> {
        let kind = self.kind();
        let record = Record {
            message_format: self.message_format,
            is_translated: self.is_translated,
            is_raised: self.context.is_some_and(|context| {
                context
                    .split(|byte| *byte == b'\n')
                    .next()
                    .is_some_and(|line| line.ends_with(b" at RAISE"))
            }),
            statements: [self.running, self.internal_query.unwrap_or_default()],
            names: self.names,
        };
        let is_own = self
            .context
            .is_some_and(|context| OWN_FUNCTIONS.iter().any(|begin| context.starts_with(begin)))
            || OWN_MESSAGES.iter().any(|begin| self.message.starts_with(begin));
        Ok(Masked {
            message: finished(Some(self.message), |text, out| match kind {
                Kind::Statement => self.statement_message(text, out),
                Kind::Plan => plan_message(text, out),
                Kind::Library => self.library_message(text, out),
                Kind::Tree | Kind::Statistics => out.push(text),
                Kind::Deadlock | Kind::Message if is_own => out.push(text),
                Kind::Deadlock | Kind::Message => record.message(text, out),
            })?,
            detail: finished(self.detail, |text, out| match kind {
                Kind::Statement => mask(text, out),
                Kind::Tree => out.push(b"***"),
                Kind::Statistics => out.push(text),
                _ if is_own => out.push(text),
                _ => record.detail(text, out),
            })?,
            detail_log: finished(self.detail_log, |text, out| match kind {
                Kind::Deadlock => mask_processes(text, out),
                _ => record.detail(text, out),
            })?,
            hint: finished(self.hint, |text, out| {
                if is_own { out.push(text) } else { record.hint(text, out) }
            })?,
            context: finished(self.context, |text, out| record.context(text, out))?,
            internal_query: finished(self.internal_query, mask)?,
            statement: finished(self.statement, mask)?,
        })
    }

    fn kind(&self) -> Kind {
        let format = self.message_format.unwrap_or_default();
        match self.file {
            b"postgres.c" if self.is_log && format.ends_with(b": %s") => Kind::Statement,
            b"postgres.c" if self.is_log && format == b"%s" => Kind::Statistics,
            b"print.c" if self.is_log => Kind::Tree,
            b"deadlock.c" if self.detail_log.is_some() => Kind::Deadlock,
            b"pgaudit.c" | b"pg_cron.c" => Kind::Library,
            _ if format.ends_with(b"plan:\n%s") => Kind::Plan,
            _ => Kind::Message,
        }
    }

    /// pgaudit puts the values of parameters at the end, without quotes, or says that there are none.
    fn library_message(&self, message: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
        let has_values = self.file == b"pgaudit.c"
            && ![&b",<none>"[..], b",<not logged>"].iter().any(|end| message.ends_with(end));
        if has_values { out.push(b"AUDIT: ***") } else { mask(message, out) }
    }

    /// The statement stands at the end, behind what is there in any language.
    fn statement_message(&self, message: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
        let (before, statement) = match message.strip_suffix(self.running) {
            Some(before) => (before, self.running),
            None => (&b""[..], message),
        };
        out.push(before)?;
        mask(statement, out)
    }
}

fn plan_message(message: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
    let plan = message.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    out.push(message.get(..plan).unwrap_or_default())?;
    mask_plan(message.get(plan..).unwrap_or_default(), out)
}

fn finished(
    text: Option<&[u8]>,
    write: impl FnOnce(&[u8], &mut Text) -> Result<(), OutOfMemory>,
) -> Result<Option<Text>, OutOfMemory> {
    let Some(text) = text else { return Ok(None) };
    let mut out = Text::new();
    write(text, &mut out)?;
    out.push(b"\0")?;
    Ok(Some(out))
}
