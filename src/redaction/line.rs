//! A record of the server log: whether it may hold literals, and what is left of it without them.

use fieldcrypt_sql_text::messages::{Record, mask_processes};
use fieldcrypt_sql_text::{OutOfMemory, Text, executed_statements, mask, mask_plan};

use super::{concerns, known};
use crate::pg::log_hook::{Line, Masked};
use crate::pg::statements;

/// The file names that the extension's own reports carry.
const OWN_FILE: &[u8] = b"pg_fieldcrypt";

/// How CONTEXT begins where a function of the extension speaks.
const OWN_FUNCTIONS: [&[u8]; 2] =
    [b"PL/pgSQL function fieldcrypt.", b"PL/pgSQL function fieldcrypt_internal."];

/// How alerts begin: CONTEXT is in the language of the server, and quoted as `quote_all_identifiers` says.
const OWN_MESSAGES: [&[u8]; 2] = [b"fieldcrypt alert: ", b"fieldcrypt alert resolved: "];

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

/// Whether a line is to be masked.
pub fn is_to_be_masked(line: &Line<'_>) -> bool {
    if !may_hold_literals(line) {
        return false;
    }
    if is_begin_of_statement(line) {
        known::refresh();
    }
    is_about_values(line)
}

/// Whether there is anything to mask, whatever it is about.
fn may_hold_literals(line: &Line<'_>) -> bool {
    if line.file == OWN_FILE {
        return false;
    }
    let [table, ..] = line.names;
    kind(line) != Kind::Message
        || line.statement.is_some()
        || line.internal_query.is_some()
        || line.context.is_some()
        || !table.is_empty()
        || (!line.running.is_empty() && !line.is_log)
}

/// Whether this is written between parsing a statement and running it, where the catalogs may be
/// read. Anywhere else in a log line may be in the middle of anything.
fn is_begin_of_statement(line: &Line<'_>) -> bool {
    kind(line) == Kind::Statement
        && !line.message_format.is_some_and(|format| format.starts_with(b"duration: "))
}

/// Whether it concerns encrypted values.
fn is_about_values(line: &Line<'_>) -> bool {
    let with_statements =
        |text, kinds: &[Kind]| if kinds.contains(&kind(line)) { text } else { &b""[..] };
    let texts = [
        line.running,
        line.internal_query.unwrap_or_default(),
        line.context.unwrap_or_default(),
        with_statements(line.message, &[Kind::Statement, Kind::Plan, Kind::Library]),
        with_statements(line.detail.unwrap_or_default(), &[Kind::Statement]),
        with_statements(line.detail_log.unwrap_or_default(), &[Kind::Deadlock]),
    ];
    let [table, ..] = line.names;
    concerns(&texts, &[table])
        || executed_statements(line.running)
            .any(|name| statements::prepared(&name).is_some_and(|text| concerns(&[text], &[])))
}

/// Masks everything that it holds.
pub fn masked(line: &Line<'_>) -> Result<Masked, OutOfMemory> {
    let kind = kind(line);
    let record = Record {
        message_format: line.message_format,
        is_translated: line.is_translated,
        is_raised: line.context.is_some_and(|context| {
            context
                .split(|byte| *byte == b'\n')
                .next()
                .is_some_and(|first| first.ends_with(b" at RAISE"))
        }),
        statements: [line.running, line.internal_query.unwrap_or_default()],
        names: line.names,
    };
    let is_own = line
        .context
        .is_some_and(|context| OWN_FUNCTIONS.iter().any(|begin| context.starts_with(begin)))
        || OWN_MESSAGES.iter().any(|begin| line.message.starts_with(begin));
    Ok(Masked {
        message: finished(Some(line.message), |text, out| match kind {
            Kind::Statement => statement_message(line, text, out),
            Kind::Plan => plan_message(text, out),
            Kind::Library => library_message(line, text, out),
            Kind::Tree | Kind::Statistics => out.push(text),
            Kind::Deadlock | Kind::Message if is_own => out.push(text),
            Kind::Deadlock | Kind::Message => record.message(text, out),
        })?,
        detail: finished(line.detail, |text, out| match kind {
            Kind::Statement => mask(text, out),
            Kind::Tree => out.push(b"***"),
            Kind::Statistics => out.push(text),
            _ if is_own => out.push(text),
            _ => record.detail(text, out),
        })?,
        detail_log: finished(line.detail_log, |text, out| match kind {
            Kind::Deadlock => mask_processes(text, out),
            _ => record.detail(text, out),
        })?,
        hint: finished(
            line.hint,
            |text, out| {
                if is_own { out.push(text) } else { record.hint(text, out) }
            },
        )?,
        context: finished(line.context, |text, out| record.context(text, out))?,
        internal_query: finished(line.internal_query, mask)?,
        statement: finished(line.statement, mask)?,
    })
}

fn kind(line: &Line<'_>) -> Kind {
    let format = line.message_format.unwrap_or_default();
    match line.file {
        b"postgres.c" if line.is_log && format.ends_with(b": %s") => Kind::Statement,
        b"postgres.c" if line.is_log && format == b"%s" => Kind::Statistics,
        b"print.c" if line.is_log => Kind::Tree,
        b"deadlock.c" if line.detail_log.is_some() => Kind::Deadlock,
        b"pgaudit.c" | b"pg_cron.c" => Kind::Library,
        _ if format.ends_with(b"plan:\n%s") => Kind::Plan,
        _ => Kind::Message,
    }
}

/// pgaudit puts the values of parameters at the end, without quotes, or says that there are none.
fn library_message(line: &Line<'_>, message: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
    let has_values = line.file == b"pgaudit.c"
        && ![&b",<none>"[..], b",<not logged>"].iter().any(|end| message.ends_with(end));
    if has_values { out.push(b"AUDIT: ***") } else { mask(message, out) }
}

/// The statement stands at the end, behind what is there in any language.
fn statement_message(line: &Line<'_>, message: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
    let (before, statement) = match message.strip_suffix(line.running) {
        Some(before) => (before, line.running),
        None => (&b""[..], message),
    };
    out.push(before)?;
    mask(statement, out)
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
