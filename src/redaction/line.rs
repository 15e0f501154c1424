//! A record of the server log: whether it may hold values, and what is left of it without them.

use fieldcrypt_sql_text::messages::{
    Record, mask_context, mask_lock_numbers, mask_memory_context, mask_processes,
};
use fieldcrypt_sql_text::{
    Kind as Token, OutOfMemory, Text, Tokens, executes, mask, mask_audit, mask_job, mask_plan,
};

use super::{Redaction, known, redact_logs};
use crate::pg::log_hook::{self, Line, Masked, Relations};
use crate::pg::{marks, statements};

/// The file that lines of pgaudit come from.
const PGAUDIT: &[u8] = b"pgaudit.c";

/// The file names that the extension's own reports carry.
const OWN_FILE: &[u8] = b"pg_fieldcrypt";

/// How CONTEXT begins where a function of the extension speaks.
const OWN_FUNCTIONS: [&[u8]; 2] =
    [b"PL/pgSQL function fieldcrypt.", b"PL/pgSQL function fieldcrypt_internal."];

/// How alerts begin: CONTEXT is in the language of the server, and quoted as `quote_all_identifiers` says.
const OWN_MESSAGES: [&[u8]; 2] = [b"fieldcrypt alert: ", b"fieldcrypt alert resolved: "];

/// How lines of CONTEXT begin where somebody else's values are at hand: a row that a decoding plugin is given, or one that is
/// applied, what another process of the statement has raised.
const ELSEWHERE: [&[u8]; 3] = [b"slot \"", b"processing remote data ", b"parallel worker"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// "statement: ...", "duration: ... execute p: ...": ends with a statement.
    Statement,
    /// "duration: ... plan:", of auto_explain.
    Plan,
    /// "parse tree:", of debug_print_parse and the like.
    Tree,
    /// "Process 1 waits ...", with the statements of others.
    Deadlock,
    /// What pg_log_backend_memory_contexts asks for.
    Memory,
    /// A line with a statement, of a library that is known to write such: pgaudit, pg_cron.
    Library,
    /// What the server counts or waits for: no value but the number of an advisory lock.
    Measure,
    /// Anything else.
    Message,
}

/// Whether a line is to be masked. Where it can't be told, it is.
pub fn is_to_be_masked(line: &Line<'_>) -> bool {
    if !may_hold_values(line) {
        return false;
    }
    if redact_logs() == Redaction::All {
        return true;
    }
    if !log_hook::has_database() || log_hook::is_starting() {
        return false;
    }
    known::want();
    matches!(kind(line), Kind::Deadlock | Kind::Memory)
        // A prepared statement that is not there.
        || line.class == *b"26"
        || !log_hook::serves_a_client()
        || marks::is_marked()
        || !is_told_apart(line)
        || is_about_values(line)
}

/// Whether there is anything to mask, whatever it is about.
fn may_hold_values(line: &Line<'_>) -> bool {
    line.file != OWN_FILE
        && (!line.is_log
            || kind(line) != Kind::Message
            || line.statement.is_some()
            || line.internal_query.is_some()
            || line.context.is_some())
}

/// Whether the names that it is compared with are up to date. A line that tells of a statement is written where
/// catalogs may be read, unless the statement's transaction is over.
fn is_told_apart(line: &Line<'_>) -> bool {
    if kind(line) == Kind::Statement && known::refresh(known::ReadAt::Line) {
        return true;
    }
    known::is_fresh()
        && marks::is_checked(!line.running.is_empty())
        && (line.is_log || !holds_several_statements(line.running))
}

/// Of which the first may have run for hours before the second failed.
fn holds_several_statements(text: &[u8]) -> bool {
    Tokens::of(text)
        .filter(|token| !matches!(token.kind, Token::Space | Token::Comment))
        .skip_while(|token| text.get(token.range.clone()) != Some(b";"))
        .any(|token| text.get(token.range) != Some(b";"))
}

/// Whether it concerns encrypted values.
fn is_about_values(line: &Line<'_>) -> bool {
    let with_statements =
        |text, kinds: &[Kind]| if kinds.contains(&kind(line)) { text } else { &b""[..] };
    let context = line.context.unwrap_or_default();
    let texts = [
        line.running,
        line.internal_query.unwrap_or_default(),
        context,
        with_statements(line.message, &[Kind::Statement, Kind::Plan, Kind::Library]),
        with_statements(line.detail.unwrap_or_default(), &[Kind::Statement]),
    ];
    let [table, ..] = line.names;
    let is_of_elsewhere = line.is_translated && line.context.is_some()
        || context
            .split(|byte| *byte == b'\n')
            .any(|line| ELSEWHERE.iter().any(|begin| line.starts_with(begin)));
    is_of_elsewhere
        || known::mention(&texts, &[table], Relations::NONE)
        || executes(line.running, &mut |name, is_certain| match statements::prepared(name) {
            Some((text, relations)) => known::mention(&[text], &[], relations),
            // Whatever its parameters are.
            None => is_certain,
        })
}

/// Masks everything that it holds.
pub fn masked(line: &Line<'_>) -> Result<Masked, OutOfMemory> {
    let kind = kind(line);
    let is_raised = line.context.is_some_and(|context| {
        context
            .split(|byte| *byte == b'\n')
            .next()
            .is_some_and(|first| first.ends_with(b" at RAISE"))
    });
    let record = Record {
        message_format: line.message_format,
        is_translated: line.is_translated,
        is_raised,
        is_of_constraint: line.class == *b"23",
        is_of_names: line.class == *b"42",
        system_error: line.system_error,
        statement: line.running,
        names: line.names,
    };
    let is_own = is_raised
        && line
            .context
            .is_some_and(|context| OWN_FUNCTIONS.iter().any(|begin| context.starts_with(begin)))
        || OWN_MESSAGES.iter().any(|begin| line.message.starts_with(begin));
    Ok(Masked {
        message: finished(Some(line.message), |text, out| match kind {
            Kind::Statement => statement_message(line, text, out),
            Kind::Plan => plan_message(line, text, out),
            Kind::Library if line.file == PGAUDIT => mask_audit(text, line.running, out),
            Kind::Library => mask_job(text, out),
            Kind::Memory => mask_memory_context(text, out),
            Kind::Measure => mask_lock_numbers(text, out),
            Kind::Tree | Kind::Deadlock => out.push(text),
            Kind::Message if is_own => out.push(text),
            Kind::Message => record.message(text, out),
        })?,
        detail: finished(line.detail, |text, out| match kind {
            Kind::Statement => statement_detail(text, out),
            Kind::Measure => mask_lock_numbers(text, out),
            Kind::Deadlock if !line.is_translated => mask_processes(text, out),
            _ if is_own => out.push(text),
            _ => record.detail(text, out),
        })?,
        detail_log: finished(line.detail_log, |text, out| match kind {
            Kind::Deadlock if !line.is_translated => mask_processes(text, out),
            _ => record.detail(text, out),
        })?,
        hint: finished(
            line.hint,
            |text, out| {
                if is_own { out.push(text) } else { record.hint(text, out) }
            },
        )?,
        context: finished(line.context, mask_context)?,
        // Of a function: put together from values, maybe, as words of it too.
        internal_query: finished(line.internal_query, |_, out| out.push(b"***"))?,
        statement: finished(line.statement, mask)?,
    })
}

fn kind(line: &Line<'_>) -> Kind {
    let format = line.message_format.unwrap_or_default();
    match line.file {
        b"postgres.c" if line.is_log && format.ends_with(b": %s") => Kind::Statement,
        b"postgres.c" | b"proc.c" | b"fd.c" | b"fastpath.c" if line.is_log => Kind::Measure,
        b"print.c" if line.is_log => Kind::Tree,
        b"deadlock.c" if line.detail_log.is_some() => Kind::Deadlock,
        b"mcxt.c" if line.is_log => Kind::Memory,
        PGAUDIT | b"pg_cron.c" => Kind::Library,
        _ if format.ends_with(b"plan:\n%s") => Kind::Plan,
        _ => Kind::Message,
    }
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

/// Parameters, behind a word in any language; or a prepared statement, which a function may have put together from values.
fn statement_detail(detail: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
    let end = detail.iter().position(|byte| *byte == b':').map_or(0, |at| at + 1);
    let (before, said) = detail.split_at(end);
    if said.starts_with(b" $1 = ") {
        return mask(detail, out);
    }
    out.push(before)?;
    out.push(b" ***")
}

fn plan_message(line: &Line<'_>, message: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
    let plan = message.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    out.push(message.get(..plan).unwrap_or_default())?;
    mask_plan(message.get(plan..).unwrap_or_default(), line.last, line.last_is_cut_off, out)
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
