//! A statement without its literals.

use crate::lexer::{Kind, Token, Tokens, continues_word, is_space};
use crate::text::{OutOfMemory, Text};

/// What stands for a string.
pub const MASK: &[u8] = b"'***'";

/// What stands for a number: one, since a string may not stand everywhere that a number may.
const NUMBER: &[u8] = b"0";

/// What stands for `TRUE` and `FALSE`: one of them, since nothing else may stand everywhere that they may.
const BOOLEAN: &[u8] = b"TRUE";

/// What stands for a quoted identifier that is likely none.
const IDENTIFIER: &[u8] = b"\"***\"";

/// The longest identifier (`NAMEDATALEN`).
const LONGEST_IDENTIFIER: usize = 63;

/// Writes a text with every string as `'***'`, every number as `0`, `TRUE` and `FALSE` as `TRUE`, and every comment as a
/// blank.
///
/// What can be parsed still can. Quoted identifiers stay, unless they are too long for one, have no end,
/// or hold what makes it likely that quotes were mixed up. Masking a masked text changes nothing.
pub fn mask(text: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
    mask_tokens(text, true, out)
}

/// The same; numbers and booleans stay if they are not to be masked.
pub(crate) fn mask_tokens(text: &[u8], bare: bool, out: &mut Text) -> Result<(), OutOfMemory> {
    // Where the last string ended in the output, if only blanks followed: a string that comes now
    // would be its continuation.
    let mut after_string = None;
    // A Unicode escape is left out, with the word before it: what is left would not be one.
    let mut escape = Escape::None;
    for token in Tokens::of(text) {
        let source = text.get(token.range.clone()).unwrap_or_default();
        let is_blank = matches!(token.kind, Kind::Space | Kind::Comment);
        escape = match (escape, token.kind) {
            (escape, _) if is_blank => escape,
            (Escape::Possible, Kind::Word) if source.eq_ignore_ascii_case(b"uescape") => {
                Escape::Expected { before: out.len(), after_string }
            }
            (Escape::Expected { before, after_string: string_before }, Kind::String) => {
                out.truncate(before);
                push_blank(out)?;
                after_string = string_before;
                escape = Escape::Possible;
                continue;
            }
            _ if matches!(source, [b'u' | b'U', b'&', ..]) => Escape::Possible,
            _ => Escape::None,
        };
        match token.kind {
            Kind::Space => out.push(source)?,
            Kind::Comment => out.push(b" ")?,
            Kind::String => {
                match after_string {
                    Some(length) => out.truncate(length),
                    None => push_apart(MASK, out)?,
                }
                after_string = Some(out.len());
                continue;
            }
            Kind::Number => {
                let joins = |byte| continues_word(byte) || byte == b'.' && source.starts_with(b"$");
                if out.last().is_some_and(joins) {
                    out.push(b" ")?;
                }
                out.push(if bare { NUMBER } else { source })?;
            }
            Kind::Word if bare && is_boolean(source) => out.push(BOOLEAN)?,
            Kind::OpenIdentifier => push_apart(IDENTIFIER, out)?,
            Kind::QuotedIdentifier if !is_plausible(text, &token) => push_apart(IDENTIFIER, out)?,
            _ => out.push(source)?,
        }
        if !is_blank {
            after_string = None;
        }
    }
    Ok(())
}

/// Writes it so that it does not take what stands before it for a prefix, and is no part of that.
fn push_apart(masked: &[u8], out: &mut Text) -> Result<(), OutOfMemory> {
    let joins = |byte| matches!(byte, b'\'' | b'"' | b'&') || continues_word(byte);
    if out.last().is_some_and(joins) {
        out.push(b" ")?;
    }
    out.push(masked)
}

/// So that what comes is no part of what stands there.
fn push_blank(out: &mut Text) -> Result<(), OutOfMemory> {
    if out.last().is_some_and(is_space) { Ok(()) } else { out.push(b" ") }
}

#[derive(Clone, Copy)]
enum Escape {
    None,
    /// After `U&'…'` or `U&"…"`.
    Possible,
    /// After UESCAPE, with what was written before it.
    Expected {
        before: usize,
        after_string: Option<usize>,
    },
}

fn is_boolean(word: &[u8]) -> bool {
    [&b"true"[..], b"false"].iter().any(|boolean| word.eq_ignore_ascii_case(boolean))
}

fn is_plausible(text: &[u8], token: &Token) -> bool {
    let content = text.get(token.content.clone()).unwrap_or_default();
    content.len() <= LONGEST_IDENTIFIER
        && !content.iter().any(|byte| matches!(byte, b'\'' | b'\n' | b'\r'))
        && !content.windows(2).any(|pair| pair == b"$$")
}
