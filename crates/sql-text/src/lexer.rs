//! PostgreSQL's lexical structure (chapter 4.1 of its manual, `scan.l`).
//!
//! Where the text leaves open what the server took for a literal, it is one: a backslash before the
//! quote that would end an ordinary string (which ends it or not by `standard_conforming_strings`,
//! whose value when the text was read is not known) makes everything after it part of the string.

use std::ops::Range;

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Blanks and line ends.
    Space,
    /// `-- …` up to the end of the line, or `/* … */`.
    Comment,
    /// A key word or an identifier without quotes.
    Word,
    /// `"…"` or `U&"…"`.
    QuotedIdentifier,
    /// A quoted identifier without its end.
    OpenIdentifier,
    /// `'…'`, `E'…'`, `B'…'`, `X'…'`, `N'…'`, `U&'…'`, with its continuations, or `$tag$…$tag$`.
    String,
    /// A number, or `$1`, with whatever letters are stuck to it.
    Number,
    /// `$1`.
    Parameter,
    /// An operator.
    Operator,
    /// Any other single character, or `..`.
    Other,
}

/// A piece of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: Kind,
    /// Where it stands.
    pub range: Range<usize>,
    /// Where its content stands, for strings and quoted identifiers: without prefix and quotes.
    pub content: Range<usize>,
}

/// The tokens of a text. Together they are the text.
#[derive(Debug, Clone)]
pub struct Tokens<'t> {
    text: &'t [u8],
    at: usize,
}

impl<'t> Tokens<'t> {
    /// Of this text.
    pub const fn of(text: &'t [u8]) -> Self {
        Self { text, at: 0 }
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.text.get(at).copied()
    }

    fn starts_with(&self, at: usize, prefix: &[u8]) -> bool {
        self.text.get(at..).is_some_and(|rest| rest.starts_with(prefix))
    }

    /// Where the bytes that `belongs` wants end.
    fn run(&self, from: usize, belongs: impl Fn(u8) -> bool) -> usize {
        let rest = self.text.get(from..).unwrap_or_default();
        from + rest.iter().position(|byte| !belongs(*byte)).unwrap_or(rest.len())
    }

    fn token(&self, start: usize) -> Token {
        let plain = |kind, end| Token { kind, range: start..end, content: start..end };
        let Some(first) = self.byte(start) else { return plain(Kind::Other, start) };
        let second = self.byte(start + 1);
        match (first, second) {
            (b'\'', _) => self.string(start, start + 1, false),
            (b'e' | b'E', Some(b'\'')) => self.string(start, start + 2, true),
            (b'b' | b'B' | b'x' | b'X' | b'n' | b'N', Some(b'\'')) => {
                self.string(start, start + 2, false)
            }
            (b'u' | b'U', Some(b'&')) if self.byte(start + 2) == Some(b'\'') => {
                self.string(start, start + 3, false)
            }
            (b'u' | b'U', Some(b'&')) if self.byte(start + 2) == Some(b'"') => {
                self.quoted_identifier(start, start + 3)
            }
            (b'"', _) => self.quoted_identifier(start, start + 1),
            (b'$', Some(b'0'..=b'9')) => {
                let end = self.run(start + 1, |byte| byte.is_ascii_digit());
                // With letters stuck to it the server takes it for a number that is none.
                match self.byte(end) {
                    Some(byte) if starts_word(byte) => plain(Kind::Number, self.number(end)),
                    _ => plain(Kind::Parameter, end),
                }
            }
            (b'$', _) => self.dollar_quoted(start).unwrap_or_else(|| plain(Kind::Other, start + 1)),
            (b'-', Some(b'-')) => {
                plain(Kind::Comment, self.run(start, |byte| byte != b'\n' && byte != b'\r'))
            }
            (b'/', Some(b'*')) => plain(Kind::Comment, self.block_comment(start)),
            (b'.', Some(b'.')) => plain(Kind::Other, start + 2),
            (b'0'..=b'9', _) | (b'.', Some(b'0'..=b'9')) => plain(Kind::Number, self.number(start)),
            _ if is_space(first) => plain(Kind::Space, self.run(start, is_space)),
            _ if starts_word(first) => plain(Kind::Word, self.run(start, continues_word)),
            _ if is_operator(first) => plain(Kind::Operator, self.operator(start)),
            _ => plain(Kind::Other, start + 1),
        }
    }

    fn string(&self, start: usize, content: usize, has_escapes: bool) -> Token {
        let mut at = content;
        let token = |content_end, end| Token {
            kind: Kind::String,
            range: start..end,
            content: content..content_end,
        };
        loop {
            let Some(quote) = self.find_quote(at, has_escapes) else {
                return token(self.text.len(), self.text.len());
            };
            let after = quote + 1;
            if self.byte(after) == Some(b'\'') {
                at = after + 1;
                continue;
            }
            match self.continuation(after) {
                Some(next) => at = next,
                None => return token(quote, after),
            }
        }
    }

    /// The next quote that is none of the content, as far as can be told.
    fn find_quote(&self, from: usize, has_escapes: bool) -> Option<usize> {
        let mut at = from;
        loop {
            match self.byte(at)? {
                b'\'' => return Some(at),
                // In an ordinary string two backslashes are one or two, but the string goes on; before
                // a quote a single one makes it unclear where the string ends.
                b'\\' if self.byte(at + 1) == Some(b'\'') && !has_escapes => return None,
                b'\\' => at += 2,
                _ => at += 1,
            }
        }
    }

    /// Where a string goes on that was closed here: after a line end and another quote.
    fn continuation(&self, from: usize) -> Option<usize> {
        let mut at = from;
        let mut line_ended = false;
        loop {
            match self.byte(at)? {
                b'\'' if line_ended => return Some(at + 1),
                b'\n' | b'\r' => {
                    line_ended = true;
                    at += 1;
                }
                b'-' if self.byte(at + 1) == Some(b'-') => {
                    at = self.run(at, |byte| byte != b'\n' && byte != b'\r');
                }
                byte if is_space(byte) => at += 1,
                _ => return None,
            }
        }
    }

    fn quoted_identifier(&self, start: usize, content: usize) -> Token {
        let mut at = content;
        loop {
            let quote = self.run(at, |byte| byte != b'"');
            if self.byte(quote).is_none() {
                let end = self.text.len();
                let (range, content) = (start..end, content..end);
                return Token { kind: Kind::OpenIdentifier, range, content };
            }
            if self.byte(quote + 1) != Some(b'"') {
                let (range, content) = (start..quote + 1, content..quote);
                return Token { kind: Kind::QuotedIdentifier, range, content };
            }
            at = quote + 2;
        }
    }

    fn dollar_quoted(&self, start: usize) -> Option<Token> {
        let tag_end = match self.byte(start + 1)? {
            b'$' => start + 1,
            first if starts_word(first) => {
                self.run(start + 1, |byte| continues_word(byte) && byte != b'$')
            }
            _ => return None,
        };
        if self.byte(tag_end)? != b'$' {
            return None;
        }
        let content = tag_end + 1;
        let delimiter = self.text.get(start..content)?;
        let mut at = content;
        let length = self.text.len();
        loop {
            at = self.run(at, |byte| byte != b'$');
            if at >= length {
                let (range, content) = (start..length, content..length);
                return Some(Token { kind: Kind::String, range, content });
            }
            if self.starts_with(at, delimiter) {
                let range = start..at + delimiter.len();
                return Some(Token { kind: Kind::String, range, content: content..at });
            }
            at += 1;
        }
    }

    fn block_comment(&self, start: usize) -> usize {
        let mut depth = 0usize;
        let mut at = start;
        while at < self.text.len() {
            if self.starts_with(at, b"/*") {
                depth += 1;
                at += 2;
            } else if self.starts_with(at, b"*/") {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            } else {
                at += 1;
            }
        }
        self.text.len()
    }

    /// A dollar sign is no part of it, other than of a word: what begins there may be a string.
    fn number(&self, start: usize) -> usize {
        let mut end = start;
        loop {
            end = self.run(end, |byte| continues_word(byte) && byte != b'$');
            let is_exponent = matches!(self.byte(end.wrapping_sub(1)), Some(b'e' | b'E'))
                && matches!(self.byte(end), Some(b'+' | b'-'))
                && self.byte(end + 1).is_some_and(|byte| byte.is_ascii_digit());
            let is_fraction = self.byte(end) == Some(b'.') && self.byte(end + 1) != Some(b'.');
            if !is_exponent && !is_fraction {
                return end;
            }
            end += 1;
        }
    }

    fn operator(&self, start: usize) -> usize {
        let mut end = start + 1;
        while self.byte(end).is_some_and(is_operator)
            && !self.starts_with(end, b"--")
            && !self.starts_with(end, b"/*")
        {
            end += 1;
        }
        end
    }
}

impl Iterator for Tokens<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        if self.at >= self.text.len() {
            return None;
        }
        let token = self.token(self.at);
        self.at = token.range.end.max(self.at + 1);
        Some(token)
    }
}

pub(crate) const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'\x0b' | b'\x0c')
}

pub(crate) const fn starts_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || !byte.is_ascii()
}

pub(crate) const fn continues_word(byte: u8) -> bool {
    starts_word(byte) || byte.is_ascii_digit() || byte == b'$'
}

fn is_operator(byte: u8) -> bool {
    b"~!@#^&|`?+-*/%<>=".contains(&byte)
}
