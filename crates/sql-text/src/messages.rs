//! What the server says about a statement: messages, details, hints and contexts, without the values
//! that they quote.
//!
//! Such texts are prose, in which a value stands between double quotes that the value itself may hold.
//! So the rule is the other way round: what is quoted goes, unless it is a name that the statement or
//! the error names anyway.

use crate::lexer::{Kind, Token, Tokens, continues_word};
use crate::mask::mask;
use crate::text::{OutOfMemory, Text};

/// What stands for a value in prose.
const VALUE: &[u8] = b"***";

/// Pieces of a statement's literals that are looked for in its messages; with more, nothing variable of
/// a message is shown. And how long a message may be for that.
const PIECES: usize = 200;
const LONGEST_PROSE: usize = 16_384;

/// Pieces of literals that are shorter occur in any text.
const SHORTEST_PIECE: usize = 3;

/// What is known about a record of the log besides its texts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Record<'t> {
    /// The message before its values were put in, untranslated: a format of `printf`.
    pub message_format: Option<&'t [u8]>,
    /// Whether messages are in another language, whose quotes are not known.
    pub is_translated: bool,
    /// Whether it comes from RAISE in PL/pgSQL.
    pub is_raised: bool,
    /// The statements that the record is about.
    pub statements: [&'t [u8]; 2],
    /// Names that the record gives: of the table, the column, the constraint and so on.
    pub names: [&'t [u8]; 5],
}

impl Record<'_> {
    /// Masks the primary message.
    pub fn message(&self, message: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
        match self.message_format {
            _ if self.is_of_user() => out.push(VALUE),
            Some(format) if !format.contains(&b'%') => out.push(message),
            Some(format) if self.is_translated => out.push(format),
            None if self.is_translated => out.push(VALUE),
            Some(format) => self.prose(message, format, format, out),
            None => self.prose(message, b"", VALUE, out),
        }
    }

    /// Masks DETAIL.
    pub fn detail(&self, detail: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
        if self.is_translated || self.is_of_user() {
            return out.push(VALUE);
        }
        // Of plpgsql.print_strict_params: values that no statement needs to hold.
        if detail.starts_with(b"parameters: ") {
            return mask(detail, out);
        }
        let mut without_row = Text::new();
        match row_values(detail) {
            Some((start, end)) => {
                without_row.push(detail.get(..start).unwrap_or_default())?;
                without_row.push(VALUE)?;
                without_row.push(detail.get(end..).unwrap_or_default())?;
            }
            None => without_row.push(detail)?,
        }
        self.prose(without_row.as_bytes(), b"", VALUE, out)
    }

    /// Masks HINT.
    pub fn hint(&self, hint: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
        if self.is_of_user() {
            return out.push(VALUE);
        }
        self.prose(hint, b"", VALUE, out)
    }

    /// Whether somebody's own code speaks (RAISE, an error of a foreign server), whose words can't be told
    /// from its values. CONTEXT still says where.
    fn is_of_user(&self) -> bool {
        self.is_raised || self.message_format == Some(b"%s")
    }

    /// Masks CONTEXT: lines of which each may be followed by further lines of a value.
    pub fn context(&self, context: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
        let mut rest = context;
        let mut is_first = true;
        while !rest.is_empty() {
            let (block, next) = context_block(rest);
            rest = next;
            if !is_first {
                out.push(b"\n")?;
            }
            is_first = false;
            self.context_of(block, out)?;
        }
        Ok(())
    }

    fn context_of(&self, block: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
        match Context::of(block) {
            Context::Harmless => out.push(block),
            Context::Quoted(start) => {
                let end = block.iter().rposition(|byte| *byte == b'"').unwrap_or(block.len());
                let quoted = block.get(start..end.max(start)).unwrap_or_default();
                out.push(block.get(..start).unwrap_or_default())?;
                mask(quoted, out)?;
                out.push(block.get(end.max(start)..).unwrap_or_default())
            }
            Context::Parameters(start) => {
                out.push(block.get(..start).unwrap_or_default())?;
                mask(block.get(start..).unwrap_or_default(), out)
            }
            Context::UpTo(end) => {
                out.push(block.get(..end).unwrap_or_default())?;
                if end < block.len() {
                    out.push(b": ")?;
                    out.push(VALUE)?;
                }
                Ok(())
            }
            Context::Unknown => out.push(VALUE),
        }
    }

    /// Masks what is quoted and what the statement's literals hold; or writes something else instead.
    fn prose(
        &self,
        text: &[u8],
        format: &[u8],
        instead: &[u8],
        out: &mut Text,
    ) -> Result<(), OutOfMemory> {
        let Some(pieces) = self.pieces().filter(|_| text.len() <= LONGEST_PROSE) else {
            return out.push(instead);
        };
        let mut without_bytes = Text::new();
        mask_bytes(text, &mut without_bytes)?;
        let mut without_quotes = Text::new();
        self.mask_quotes(without_bytes.as_bytes(), &mut without_quotes)?;
        pieces.mask(without_quotes.as_bytes(), format, out)
    }

    /// From the first quote that does not hold a known name up to the last: values hold quotes too.
    fn mask_quotes(&self, text: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
        let quote_from = |from: usize| {
            text.get(from..)
                .and_then(|rest| rest.iter().position(|byte| *byte == b'"'))
                .map(|at| from + at)
        };
        let mut at = 0;
        while let Some(open) = quote_from(at) {
            let close = quote_from(open + 1);
            let content = text.get(open + 1..close.unwrap_or(text.len())).unwrap_or_default();
            match close {
                Some(close) if self.is_known(content) => at = close + 1,
                _ => {
                    let last = text.iter().rposition(|byte| *byte == b'"');
                    out.push(text.get(..=open).unwrap_or_default())?;
                    out.push(VALUE)?;
                    return match last {
                        Some(last) if last > open => out.push(text.get(last..).unwrap_or_default()),
                        _ => Ok(()),
                    };
                }
            }
        }
        out.push(text)
    }

    /// Whether this is a name, or names with dots between, that may be shown.
    fn is_known(&self, quoted: &[u8]) -> bool {
        // Names of at most three parts, as database.schema.relation.
        let mut parts = quoted.split(|byte| *byte == b'.');
        let known = parts.by_ref().take(4).all(|part| self.is_known_name(part));
        known && parts.next().is_none()
    }

    fn is_known_name(&self, name: &[u8]) -> bool {
        let is = |text: &[u8], token: &Token| {
            matches!(token.kind, Kind::Word | Kind::QuotedIdentifier)
                && text
                    .get(token.content.clone())
                    .is_some_and(|content| content.eq_ignore_ascii_case(name))
        };
        !name.is_empty()
            && (self.names.contains(&name)
                || self
                    .statements
                    .iter()
                    .any(|text| Tokens::of(text).any(|token| is(text, &token))))
    }

    /// What the literals hold, unless there is too much of it to look for.
    fn pieces(&self) -> Option<Pieces<'_>> {
        let mut pieces = Pieces { all: [b""; PIECES], count: 0 };
        for text in &self.statements {
            for token in Tokens::of(text) {
                if !matches!(token.kind, Kind::String | Kind::Number) {
                    continue;
                }
                for piece in pieces_of(text.get(token.content).unwrap_or_default()) {
                    *pieces.all.get_mut(pieces.count)? = piece;
                    pieces.count += 1;
                }
            }
        }
        Some(pieces)
    }
}

/// Pieces of literals.
struct Pieces<'t> {
    all: [&'t [u8]; PIECES],
    count: usize,
}

impl Pieces<'_> {
    /// Masks wherever one stands in a text, except for words of the format.
    fn mask(&self, text: &[u8], format: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
        let pieces = self.all.get(..self.count).unwrap_or_default();
        let mut at = 0;
        while at < text.len() {
            let rest = text.get(at..).unwrap_or_default();
            let found = pieces
                .iter()
                .filter(|piece| rest.starts_with(piece) && !contains(format, piece))
                .map(|piece| piece.len())
                .max();
            out.push(if found.is_some() { VALUE } else { rest.get(..1).unwrap_or_default() })?;
            at += found.unwrap_or(1);
        }
        Ok(())
    }
}

/// Masks what the deadlock detector writes into the log: lines "Process 1: statement".
pub fn mask_processes(detail: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
    let mut rest = detail;
    while !rest.is_empty() {
        let prefix = process_prefix(rest).unwrap_or(0);
        let (segment, next) = split_where(rest, prefix, |line| process_prefix(line).is_some());
        out.push(segment.get(..prefix).unwrap_or_default())?;
        let statement = segment.get(prefix..).unwrap_or_default();
        match lock_wait(statement) {
            true => out.push(statement)?,
            false => mask(statement, out)?,
        }
        rest = next;
        if !rest.is_empty() {
            out.push(b"\n")?;
        }
    }
    Ok(())
}

/// The length of "Process 123: " or "Process 123 " in any language: a word, a number, a colon or blank.
fn process_prefix(line: &[u8]) -> Option<usize> {
    let rest = line.strip_prefix(b"Process ")?;
    let digits = rest.iter().position(|byte| !byte.is_ascii_digit())?;
    (digits > 0 && matches!(rest.get(digits), Some(b':' | b' '))).then_some(8 + digits + 1)
}

/// "waits for ShareLock on transaction 1; blocked by process 2.": without a value.
fn lock_wait(text: &[u8]) -> bool {
    text.starts_with(b"waits for ") && !text.iter().any(|byte| matches!(byte, b'\'' | b'"' | b'\n'))
}

/// How lines of CONTEXT begin that hold names, but no values.
const NAMES_ONLY: [&[u8]; 17] = [
    b"parallel worker",
    b"automatic analyze of table ",
    b"automatic vacuum of table ",
    b"processing remote data ",
    b"slot \"",
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
    b"WAL redo at ",
];

/// What a line of CONTEXT is, and where its value starts.
enum Context {
    /// Holds no value.
    Harmless,
    /// SQL from here to the last quote.
    Quoted(usize),
    /// `$1 = '…'` from here on.
    Parameters(usize),
    /// Data from here on.
    UpTo(usize),
    Unknown,
}

impl Context {
    fn of(block: &[u8]) -> Self {
        for prefix in [
            &b"SQL statement \""[..],
            b"PL/pgSQL assignment \"",
            b"PL/pgSQL expression \"",
            b"SQL expression \"",
        ] {
            if block.starts_with(prefix) {
                return Self::Quoted(prefix.len());
            }
        }
        for prefix in [&b"unnamed portal "[..], b"portal \"", b"extended query "] {
            if block.starts_with(prefix) {
                return Self::Parameters(prefix.len() - 1);
            }
        }
        if block.starts_with(b"COPY ") {
            return contains_at(block, b", line ").map_or(Self::Unknown, |at| {
                let digits = at + b", line ".len();
                let rest = block.get(digits..).unwrap_or_default();
                Self::UpTo(digits + rest.iter().take_while(|byte| byte.is_ascii_digit()).count())
            });
        }
        let one_line = !block.contains(&b'\n');
        if one_line
            && (block.starts_with(b"PL/pgSQL function ") || block.starts_with(b"SQL function "))
        {
            return Self::of_function(block);
        }
        if one_line && NAMES_ONLY.iter().any(|prefix| block.starts_with(prefix)) {
            return Self::Harmless;
        }
        Self::Unknown
    }

    /// "PL/pgSQL function f(integer) line 3 at RAISE", "SQL function "f" statement 1".
    fn of_function(block: &[u8]) -> Self {
        let is_plain = |byte: &u8| continues_word(*byte) || b" \"/().,[]-+".contains(byte);
        if block.len() <= 600 && block.iter().all(is_plain) {
            Self::Harmless
        } else {
            Self::Unknown
        }
    }
}

/// A line with those that belong to it, and what follows.
fn context_block(context: &[u8]) -> (&[u8], &[u8]) {
    split_where(context, 0, |line| {
        !matches!(
            Context::of(line.split(|byte| *byte == b'\n').next().unwrap_or_default()),
            Context::Unknown
        )
    })
}

/// Splits before the first line, behind `from`, that starts something new; without the line end.
fn split_where(text: &[u8], from: usize, starts: impl Fn(&[u8]) -> bool) -> (&[u8], &[u8]) {
    let mut at = from;
    while let Some(found) =
        text.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == b'\n'))
    {
        let end = at + found;
        let line = text.get(end + 1..).unwrap_or_default();
        if starts(line) {
            return (text.get(..end).unwrap_or_default(), line);
        }
        at = end + 1;
    }
    (text, b"")
}

/// Where the values of a row or key stand: `(a)=(…)`, `(a) = (…)`, `contains (…)`.
fn row_values(detail: &[u8]) -> Option<(usize, usize)> {
    let start = [&b")=("[..], b") = (", b"contains ("]
        .iter()
        .filter_map(|before| contains_at(detail, before).map(|at| at + before.len()))
        .min()?;
    let end = detail.iter().rposition(|byte| *byte == b')').filter(|end| *end >= start);
    Some((start, end.unwrap_or(detail.len())))
}

/// Masks bytes in hex: "invalid byte sequence for encoding "UTF8": 0xe4 0x62".
fn mask_bytes(text: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
    let mut rest = text;
    while let Some(at) = contains_at(rest, b"0x") {
        out.push(rest.get(..at + 2).unwrap_or_default())?;
        let after = rest.get(at + 2..).unwrap_or_default();
        let digits = after.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        if digits > 0 {
            out.push(VALUE)?;
        }
        rest = after.get(digits..).unwrap_or_default();
    }
    out.push(rest)
}

/// What of a literal stands in a message as it stands in the statement: between quotes and backslashes.
fn pieces_of(literal: &[u8]) -> impl Iterator<Item = &[u8]> {
    literal
        .split(|byte| matches!(byte, b'\'' | b'\\' | b'\n'))
        .filter(|piece| piece.len() >= SHORTEST_PIECE)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    contains_at(text, part).is_some()
}

fn contains_at(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len().max(1)).position(|window| window == part)
}
