//! The pieces of what `pg_dump` writes. It sets `standard_conforming_strings`, so a backslash is a character, but in `E'…'`.

/// A piece of SQL, with where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub kind: Kind,
    pub start: usize,
    pub end: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A word, in lower case.
    Word(String),
    /// `"…"`, without its quotes.
    Quoted(String),
    /// `'…'`, without its quotes.
    Text(Vec<u8>),
    /// A number, as it stands.
    Number(String),
    /// Any other character.
    Mark(u8),
}

impl Kind {
    pub fn is_word(&self, word: &str) -> bool {
        matches!(self, Self::Word(it) if it == word)
    }

    /// What it is as the name of something.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Word(name) | Self::Quoted(name) => Some(name),
            _ => None,
        }
    }
}

/// All pieces; `None` if a string or an identifier has no end, or is not in UTF-8 where it must be.
pub fn tokens(sql: &[u8]) -> Option<Vec<Token>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(&byte) = sql.get(at) {
        let start = at;
        let kind = match byte {
            _ if byte.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            b'-' if sql.get(at + 1) == Some(&b'-') => {
                at = sql[at..].iter().position(|it| *it == b'\n').map_or(sql.len(), |it| at + it);
                continue;
            }
            b'\'' => Kind::Text(quoted(sql, &mut at, false)?),
            b'E' | b'e' if sql.get(at + 1) == Some(&b'\'') => {
                at += 1;
                Kind::Text(quoted(sql, &mut at, true)?)
            }
            b'"' => Kind::Quoted(String::from_utf8(quoted(sql, &mut at, false)?).ok()?),
            b'0'..=b'9' => {
                at = end_of(sql, at, |it| it.is_ascii_digit() || it == b'.');
                Kind::Number(String::from_utf8(sql[start..at].to_vec()).ok()?)
            }
            _ if is_word(byte) => {
                at = end_of(sql, at, |it| is_word(it) || it.is_ascii_digit() || it == b'$');
                Kind::Word(String::from_utf8(sql[start..at].to_vec()).ok()?.to_ascii_lowercase())
            }
            _ => {
                at += 1;
                Kind::Mark(byte)
            }
        };
        found.push(Token { kind, start, end: at });
    }
    Some(found)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn end_of(sql: &[u8], at: usize, goes_on: impl Fn(u8) -> bool) -> usize {
    sql[at..].iter().position(|byte| !goes_on(*byte)).map_or(sql.len(), |length| at + length)
}

/// What is between quotes, and moves behind them. Two quotes are one.
fn quoted(sql: &[u8], at: &mut usize, escapes: bool) -> Option<Vec<u8>> {
    let quote = *sql.get(*at)?;
    let mut content = Vec::new();
    *at += 1;
    loop {
        let byte = *sql.get(*at)?;
        *at += 1;
        if byte == quote {
            if sql.get(*at) != Some(&quote) {
                return Some(content);
            }
            *at += 1;
        } else if byte == b'\\' && escapes {
            let rest = sql.get(*at..)?;
            let (byte, length) = escape(rest)?;
            content.push(byte);
            *at += length;
            continue;
        }
        content.push(byte);
    }
}

/// What follows a backslash: a byte, and how many bytes it is written in.
fn escape(rest: &[u8]) -> Option<(u8, usize)> {
    let digits = |from: usize, most: usize, base: u32| {
        let digits = rest.get(from..)?.iter().take(most);
        let digits: Vec<u32> = digits.map_while(|it| char::from(*it).to_digit(base)).collect();
        let number = digits.iter().fold(0, |number, digit| number * base + digit);
        (!digits.is_empty()).then_some((number as u8, from + digits.len()))
    };
    Some(match rest.first()? {
        b'b' => (8, 1),
        b'f' => (12, 1),
        b'n' => (b'\n', 1),
        b'r' => (b'\r', 1),
        b't' => (b'\t', 1),
        b'v' => (11, 1),
        b'0'..=b'7' => digits(0, 3, 8)?,
        b'x' => digits(1, 2, 16).unwrap_or((b'x', 1)),
        byte => (*byte, 1),
    })
}

/// A field of COPY's data; `None` is NULL.
pub fn copied(field: &[u8]) -> Option<Vec<u8>> {
    if field == b"\\N" {
        return None;
    }
    let mut content = Vec::with_capacity(field.len());
    let mut at = 0;
    while let Some(&byte) = field.get(at) {
        at += 1;
        match field.get(at..).and_then(escape) {
            Some((escaped, length)) if byte == b'\\' => {
                content.push(escaped);
                at += length;
            }
            _ => content.push(byte),
        }
    }
    Some(content)
}

/// Whether what is read line by line is inside of quotes.
#[derive(Default)]
pub struct Quotes {
    open: Option<u8>,
    escapes: bool,
    /// `$tag$`, if that is what is open.
    tag: Vec<u8>,
}

impl Quotes {
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Reads on; whether the statement may end here.
    pub fn read(&mut self, line: &[u8]) -> bool {
        let mut before = b' ';
        let mut at = 0;
        while let Some(&byte) = line.get(at) {
            let mut length = 1;
            match self.open {
                Some(b'$') if line[at..].starts_with(&self.tag) => {
                    self.open = None;
                    length = self.tag.len();
                }
                Some(b'$') => {}
                Some(quote) if byte == quote => self.open = None,
                Some(_) if byte == b'\\' && self.escapes => length = 2,
                Some(_) => {}
                None if byte == b'\'' || byte == b'"' => {
                    self.open = Some(byte);
                    // Two quotes are one, and what they are in goes on.
                    let goes_on = before == byte && self.escapes;
                    self.escapes = byte == b'\'' && (goes_on || matches!(before, b'E' | b'e'));
                }
                None if byte == b'-' && line.get(at + 1) == Some(&b'-') => break,
                None if byte == b'$' && !is_in_name(before) => {
                    if let Some(tag) = dollar_quote(&line[at..]) {
                        self.open = Some(b'$');
                        self.tag = tag.to_vec();
                        length = tag.len();
                    }
                }
                None => {}
            }
            before = byte;
            at += length;
        }
        self.open.is_none() && line.trim_ascii_end().ends_with(b";")
    }
}

fn is_in_name(byte: u8) -> bool {
    is_word(byte) || byte.is_ascii_digit()
}

/// `$tag$` at the start of a text.
fn dollar_quote(text: &[u8]) -> Option<&[u8]> {
    let length = text[1..].iter().position(|byte| !is_in_name(*byte))?;
    let is_one = text[1 + length] == b'$' && !text[1].is_ascii_digit();
    is_one.then(|| &text[..length + 2])
}

/// Pieces read one after the other.
pub struct Cursor<'t> {
    pub tokens: &'t [Token],
    pub at: usize,
}

impl<'t> Cursor<'t> {
    pub fn new(tokens: &'t [Token]) -> Self {
        Self { tokens, at: 0 }
    }

    pub fn peek(&self) -> Option<&'t Kind> {
        self.tokens.get(self.at).map(|token| &token.kind)
    }

    pub fn next(&mut self) -> Option<&'t Kind> {
        let token = self.peek()?;
        self.at += 1;
        Some(token)
    }

    pub fn take(&mut self, mark: u8) -> bool {
        let found = self.peek() == Some(&Kind::Mark(mark));
        self.at += usize::from(found);
        found
    }

    pub fn take_two(&mut self, marks: [u8; 2]) -> bool {
        let found = self.peek() == Some(&Kind::Mark(marks[0]))
            && self.tokens.get(self.at + 1).map(|it| &it.kind) == Some(&Kind::Mark(marks[1]));
        self.at += 2 * usize::from(found);
        found
    }

    pub fn word(&mut self, word: &str) -> bool {
        let found = self.peek().is_some_and(|it| it.is_word(word));
        self.at += usize::from(found);
        found
    }

    /// `a.b.c` as its names.
    pub fn names(&mut self) -> Option<Vec<String>> {
        let mut names = vec![self.next()?.name()?.to_owned()];
        while self.take(b'.') {
            names.push(self.next()?.name()?.to_owned());
        }
        Some(names)
    }

    /// `(a, b, c)`.
    pub fn list_of_names(&mut self) -> Option<Vec<String>> {
        if !self.take(b'(') {
            return None;
        }
        let mut names = Vec::new();
        loop {
            names.push(self.next()?.name()?.to_owned());
            if self.take(b')') {
                return Some(names);
            }
            if !self.take(b',') {
                return None;
            }
        }
    }

    /// Moves behind the next comma or closing parenthesis of this level; whether it was a comma.
    pub fn skip_item(&mut self) -> Option<bool> {
        let mut depth = 0u32;
        loop {
            match self.next()? {
                Kind::Mark(b'(' | b'[') => depth += 1,
                Kind::Mark(b')') if depth == 0 => return Some(false),
                Kind::Mark(b')' | b']') => depth = depth.saturating_sub(1),
                Kind::Mark(b',') if depth == 0 => return Some(true),
                _ => {}
            }
        }
    }
}
