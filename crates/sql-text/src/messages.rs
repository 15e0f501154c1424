//! What the server says about a statement: messages, details, hints and contexts, without the values
//! that they quote.
//!
//! Such texts are prose, in which a value stands between whatever it holds itself. So nothing is looked for in
//! them that would be a value: what stays are the words of the format that the message was made from, and
//! values that are one of a few words which may be shown. Where a text has no format, all of it goes.

use crate::lexer::{Kind, Tokens};
use crate::mask::mask;
use crate::text::{OutOfMemory, Text};

/// What stands for a value in prose.
pub(crate) const VALUE: &[u8] = b"***";

/// Names of types, which messages give without quotes.
const TYPES: [&[u8]; 42] = [
    b"bigint",
    b"bit",
    b"boolean",
    b"box",
    b"bytea",
    b"character",
    b"character varying",
    b"cidr",
    b"circle",
    b"date",
    b"double precision",
    b"encrypted",
    b"inet",
    b"integer",
    b"interval",
    b"json",
    b"jsonb",
    b"jsonpath",
    b"line",
    b"lseg",
    b"macaddr",
    b"macaddr8",
    b"money",
    b"name",
    b"numeric",
    b"oid",
    b"path",
    b"pg_lsn",
    b"point",
    b"polygon",
    b"real",
    b"smallint",
    b"text",
    b"tid",
    b"time",
    b"timestamp",
    b"timestamp with time zone",
    b"tsquery",
    b"tsvector",
    b"uuid",
    b"xid",
    b"xml",
];

/// What is known about a record of the log besides its texts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Record<'t> {
    /// The message before its values were put in, untranslated: a format of `printf`.
    pub message_format: Option<&'t [u8]>,
    /// Whether messages are in another language.
    pub is_translated: bool,
    /// Whether it comes from RAISE in PL/pgSQL.
    pub is_raised: bool,
    /// Whether its SQLSTATE says that a constraint is violated: what DETAIL then begins with is known.
    pub is_of_constraint: bool,
    /// Whether its SQLSTATE says that a name is wrong, or the syntax: a word of the statement may be shown.
    pub is_of_names: bool,
    /// What the system says of its last failure.
    pub system_error: &'t [u8],
    /// The client's statement. Any other that the record is about may have been put together from values.
    pub statement: &'t [u8],
    /// Names that the record gives: of the table, the column, the constraint and so on.
    pub names: [&'t [u8]; 5],
}

impl Record<'_> {
    /// Masks the primary message.
    pub fn message(&self, message: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
        match self.message_format {
            Some(format) if !self.is_of_user() => self.by_format(message, format, out),
            _ => out.push(VALUE),
        }
    }

    /// The words of the format; of what was put in, what may be shown. Where in the message that stands is a
    /// guess, which a value may mislead: then a word is shown that may be shown anyway.
    fn by_format(&self, message: &[u8], format: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
        // Said by constants of Postgres's parsers.
        let is_of_parser = [&b"%s at or near \"%s\""[..], b"%s at end of input"]
            .iter()
            .any(|begin| format.starts_with(begin));
        let mut message = Some(message).filter(|_| !self.is_translated);
        let mut rest = format;
        let mut is_first = true;
        while !rest.is_empty() {
            let (words, conversion, after) = next_conversion(rest);
            out.push(words)?;
            rest = after;
            message = message.and_then(|message| message.strip_prefix(words));
            let Some(conversion) = conversion else { continue };
            if conversion == b'%' {
                out.push(b"%")?;
                message = message.and_then(|message| message.strip_prefix(b"%"));
                continue;
            }
            let (next, ..) = next_conversion(rest);
            let end = message.and_then(|message| match next {
                b"" if rest.is_empty() => Some(message.len()),
                b"" => None,
                next => contains_at(message, next),
            });
            let value = message.zip(end).and_then(|(message, end)| message.get(..end));
            let is_shown = conversion == b's'
                && value.is_some_and(|value| {
                    (is_of_parser && is_first && is_phrase(value)) || self.may_be_shown(value)
                });
            match value.filter(|_| is_shown) {
                _ if conversion == b'm' => out.push(self.system_error)?,
                Some(value) => out.push(value)?,
                None => out.push(VALUE)?,
            }
            message = message.zip(end).and_then(|(message, end)| message.get(end..));
            is_first = false;
        }
        Ok(())
    }

    /// Masks DETAIL: of that of a constraint the columns stay, of any other nothing.
    pub fn detail(&self, detail: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
        let row = Some(detail)
            .filter(|_| self.is_of_constraint && !self.is_translated && !self.is_of_user())
            .and_then(row_values);
        let Some((start, end)) = row else { return out.push(VALUE) };
        out.push(detail.get(..start).unwrap_or_default())?;
        out.push(VALUE)?;
        out.push(detail.get(end..).unwrap_or_default())
    }

    /// Masks HINT, which is advice in fixed words, unless something is quoted in it.
    pub fn hint(&self, hint: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
        let has_value = |byte: &u8| matches!(byte, b'"' | b'\'' | b'\n') || byte.is_ascii_digit();
        let is_fixed = !self.is_translated && !self.is_of_user() && !hint.iter().any(has_value);
        out.push(if is_fixed { hint } else { VALUE })
    }

    /// Whether somebody's own code speaks (RAISE, an error of a foreign server), whose words can't be told
    /// from its values. CONTEXT still says where.
    fn is_of_user(&self) -> bool {
        self.is_raised || self.message_format == Some(b"%s")
    }

    fn may_be_shown(&self, value: &[u8]) -> bool {
        !value.is_empty()
            && (self.names.contains(&value)
                || TYPES.contains(&value)
                || (self.is_of_names && self.is_word_of_statement(value)))
    }

    fn is_word_of_statement(&self, value: &[u8]) -> bool {
        Tokens::of(self.statement).any(|token| {
            matches!(token.kind, Kind::Word | Kind::QuotedIdentifier)
                && self
                    .statement
                    .get(token.content)
                    .is_some_and(|content| content.eq_ignore_ascii_case(value))
        })
    }
}

/// The words up to the next conversion of a format, its letter, and what follows it.
fn next_conversion(format: &[u8]) -> (&[u8], Option<u8>, &[u8]) {
    let Some(at) = format.iter().position(|byte| *byte == b'%') else { return (format, None, b"") };
    let (words, rest) = format.split_at(at);
    let is_letter = |byte: &u8| {
        *byte == b'%' || (byte.is_ascii_alphabetic() && !matches!(byte, b'l' | b'h' | b'z' | b'j'))
    };
    let letter = rest.iter().skip(1).position(is_letter).map_or(rest.len(), |at| at + 1);
    let conversion = rest.get(letter).copied();
    (words, Some(conversion.unwrap_or(b's')), rest.get(letter + 1..).unwrap_or_default())
}

/// "syntax error", "unterminated quoted string".
fn is_phrase(value: &[u8]) -> bool {
    value.len() < 80 && value.iter().all(|byte| byte.is_ascii_lowercase() || b" /*".contains(byte))
}

/// Masks CONTEXT. Each line comes from a place that the statement went through, the innermost first; a value
/// in one may hold line ends, and what looks like another. So lines stay as long as it is certain where each
/// ends: what comes after a line of data goes.
pub fn mask_context(context: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
    let mut rest = context;
    loop {
        let line = rest.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let end = if one_line(line) {
            out.push(line)?;
            Some(line.len())
        } else if let Some(before) = SQL.iter().find(|before| rest.starts_with(before)) {
            out.push(before)?;
            let text = rest.get(before.len()..).unwrap_or_default();
            out.push(VALUE)?;
            out.push(b"\"")?;
            closing_quote(text).map(|quote| before.len() + quote + 1)
        } else if PARAMETERS.iter().any(|before| rest.starts_with(before)) {
            let end = line_end_outside_of_strings(rest);
            mask(rest.get(..end).unwrap_or_default(), out)?;
            Some(end)
        } else if let Some(data) = copied_data(line) {
            out.push(line.get(..data).unwrap_or_default())?;
            if data < rest.len() {
                out.push(b": ")?;
                out.push(VALUE)?;
            }
            return Ok(());
        } else {
            return out.push(VALUE);
        };
        match end.and_then(|end| rest.get(end..)) {
            Some([b'\n', next @ ..]) => {
                out.push(b"\n")?;
                rest = next;
            }
            Some([]) => return Ok(()),
            _ => {
                out.push(b"\n")?;
                return out.push(VALUE);
            }
        }
    }
}

/// How lines of CONTEXT begin that hold names and numbers of places, but no values.
const NAMES_ONLY: [&[u8]; 16] = [
    b"PL/pgSQL function ",
    b"SQL function ",
    b"automatic analyze of table ",
    b"automatic vacuum of table ",
    b"processing remote data ",
    b"while scanning ",
    b"while vacuuming ",
    b"while cleaning up ",
    b"while truncating ",
    b"while updating tuple ",
    b"while deleting tuple ",
    b"while locking ",
    b"while inserting index tuple ",
    b"while rechecking ",
    b"while checking exclusion constraint ",
    b"while checking uniqueness ",
];

/// How those begin that quote a statement or an expression: one that a function runs, which may have put it together from
/// values, as words of it too.
const SQL: [&[u8]; 4] = [
    b"SQL statement \"",
    b"PL/pgSQL assignment \"",
    b"PL/pgSQL expression \"",
    b"SQL expression \"",
];

/// How those begin that give parameters.
const PARAMETERS: [&[u8]; 3] = [b"unnamed portal ", b"portal \"", b"extended query "];

fn one_line(line: &[u8]) -> bool {
    line == b"parallel worker" || NAMES_ONLY.iter().any(|begin| line.starts_with(begin))
}

fn is_known_begin(text: &[u8]) -> bool {
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    one_line(line)
        || SQL.iter().chain(&PARAMETERS).any(|begin| line.starts_with(begin))
        || copied_data(line).is_some()
}

/// The quote behind a statement, where a line ends in front of another, or everything ends. Not where that can't be told
/// for sure.
fn closing_quote(text: &[u8]) -> Option<usize> {
    for token in Tokens::of(text) {
        let is_quoted = matches!(token.kind, Kind::QuotedIdentifier | Kind::OpenIdentifier);
        if !is_quoted {
            continue;
        }
        let quote = token.range.start;
        match text.get(quote + 1..) {
            Some([]) => return Some(quote),
            Some([b'\n', next @ ..]) => return is_known_begin(next).then_some(quote),
            _ => {}
        }
        if text.get(token.range).is_some_and(|content| content.contains(&b'\n')) {
            return None;
        }
    }
    None
}

fn line_end_outside_of_strings(text: &[u8]) -> usize {
    Tokens::of(text)
        .filter(|token| token.kind == Kind::Space)
        .find_map(|token| {
            let blanks = text.get(token.range.clone())?;
            Some(token.range.start + blanks.iter().position(|byte| *byte == b'\n')?)
        })
        .unwrap_or(text.len())
}

/// What stands before the data in `COPY patients, line 1, column age: "x"`. In all languages these come last, behind a
/// colon. (A name with a colon ends the place before its line.)
pub fn copy_place(context: &[u8]) -> &[u8] {
    context.split(|byte| *byte == b':').next().unwrap_or_default().trim_ascii_end()
}

/// Where the data begins in "COPY patients, line 1, column age: "x"".
fn copied_data(line: &[u8]) -> Option<usize> {
    if !line.starts_with(b"COPY ") {
        return None;
    }
    let digits = contains_at(line, b", line ")? + b", line ".len();
    let rest = line.get(digits..).unwrap_or_default();
    Some(digits + rest.iter().take_while(|byte| byte.is_ascii_digit()).count())
}

/// Masks what the deadlock detector writes into the log: lines that say who waits for what, then the statements of
/// all. A statement that is cut off in a literal, or has a line of that form in one, ends what can be told.
pub fn mask_processes(detail: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
    let mut rest = detail;
    loop {
        let Some(prefix) = process_prefix(rest) else { return out.push(VALUE) };
        let end = next_process(rest);
        let said = rest.get(prefix..end).unwrap_or_default();
        out.push(rest.get(..prefix).unwrap_or_default())?;
        let waits = !rest.get(..prefix).is_some_and(|prefix| prefix.ends_with(b": "));
        if waits && said.starts_with(b"waits for ") && !said.contains(&b'\n') {
            mask_lock_numbers(said, out)?;
        } else if ends_open(said) {
            return out.push(VALUE);
        } else {
            mask(said, out)?;
        }
        if end >= rest.len() {
            return Ok(());
        }
        out.push(b"\n")?;
        rest = rest.get(end + 1..).unwrap_or_default();
    }
}

/// Where the line ends before the next that begins like one of a process.
fn next_process(text: &[u8]) -> usize {
    text.iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'\n')
        .map(|(at, _)| at)
        .find(|at| text.get(at + 1..).is_some_and(|next| process_prefix(next).is_some()))
        .unwrap_or(text.len())
}

/// The length of "Process 123: " or "Process 123 ".
fn process_prefix(line: &[u8]) -> Option<usize> {
    let rest = line.strip_prefix(b"Process ")?;
    let digits = rest.iter().position(|byte| !byte.is_ascii_digit())?;
    match rest.get(digits..) {
        Some([b':', b' ', ..]) if digits > 0 => Some(8 + digits + 2),
        Some([b' ', ..]) if digits > 0 => Some(8 + digits + 1),
        _ => None,
    }
}

/// Whether a literal, a comment or a quoted identifier has no end.
fn ends_open(text: &[u8]) -> bool {
    let Some(last) = Tokens::of(text).last() else { return false };
    match last.kind {
        Kind::OpenIdentifier => true,
        Kind::String => last.content.end == text.len(),
        Kind::Comment => text.get(last.range).is_some_and(|comment| !comment.ends_with(b"*/")),
        _ => false,
    }
}

/// Masks the numbers of advisory locks, which may be values; those of relations and transactions stay.
pub fn mask_lock_numbers(text: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
    const LOCKS: [&[u8]; 2] = [b"advisory lock [", b"user lock ["];
    for before in LOCKS {
        if let Some(at) = contains_at(text, before) {
            let numbers = text.get(at + before.len()..).unwrap_or_default();
            let end = numbers.iter().position(|byte| *byte == b']').unwrap_or(numbers.len());
            out.push(text.get(..at + before.len()).unwrap_or_default())?;
            out.push(VALUE)?;
            return out.push(numbers.get(end..).unwrap_or_default());
        }
    }
    out.push(text)
}

/// Masks what `pg_log_backend_memory_contexts` writes: behind the numbers of a context stands what it is for, which may be a
/// statement.
pub fn mask_memory_context(message: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
    const USED: &[u8] = b" used";
    let end = contains_at(message, USED).map_or(0, |at| at + USED.len());
    out.push(message.get(..end).unwrap_or_default())?;
    if end < message.len() {
        out.push(b": ")?;
        out.push(VALUE)?;
    }
    Ok(())
}

/// Where the values of a row or key stand: `Key (a)=(…)`, `Failing row contains (…)`.
fn row_values(detail: &[u8]) -> Option<(usize, usize)> {
    let before: &[u8] = match () {
        () if detail.starts_with(b"Key (") => b")=(",
        () if detail.starts_with(b"Failing row contains (") => b"contains (",
        () => return None,
    };
    let start = contains_at(detail, before)? + before.len();
    let end = detail.iter().rposition(|byte| *byte == b')').filter(|end| *end >= start)?;
    Some((start, end))
}

fn contains_at(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len().max(1)).position(|window| window == part)
}
