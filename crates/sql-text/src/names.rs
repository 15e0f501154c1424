//! Which texts mention one of some names.

use crate::lexer::{Kind, Tokens, continues_word, starts_word};
use crate::text::OutOfMemory;

/// Where a name counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In code, and in code inside of strings: schemas and relations.
    Anywhere,
    /// In the code itself, not inside of strings: columns and types, whose names are ordinary words.
    Code,
    /// Before an opening parenthesis or behind a point, also inside of strings: functions, which attribute notation
    /// (`row.function`) calls as well.
    Call,
    /// As an operator, or as a key word that stands for it, also inside of strings.
    Operator,
}

/// Names as they are in the catalogs. They are compared without regard to case, and what is not ASCII
/// only by its length: rather one too many is found than one missed.
#[derive(Debug)]
pub struct Names {
    // Sorted by key.
    entries: Vec<(Key, Place)>,
    /// Beginnings and lengths of the keys, a bit each: most words of most statements are no names that are known.
    outlines: [u64; OUTLINES / 64],
}

const OUTLINES: usize = 4096;

/// Only as long as what is left of any identifier that Postgres cuts off within a character.
const KEY_BYTES: usize = 59;

type Key = [u8; KEY_BYTES + 1];

/// Strings within strings that are looked into; deeper than that, everything is mentioned.
const DEPTH: usize = 6;

/// Operators that the grammar also writes as words.
const OPERATOR_WORDS: [(&[u8], &[&[u8]]); 12] = [
    (b"=", &[b"in", b"distinct", b"nullif", b"case", b"using", b"natural"]),
    (b"<>", &[b"in"]),
    (b"<", &[b"between"]),
    (b">", &[b"between"]),
    (b"<=", &[b"between"]),
    (b">=", &[b"between"]),
    (b"~", &[b"similar"]),
    (b"!~", &[b"similar"]),
    (b"~~", &[b"like"]),
    (b"!~~", &[b"like"]),
    (b"~~*", &[b"ilike"]),
    (b"!~~*", &[b"ilike"]),
];

impl Default for Names {
    fn default() -> Self {
        Self::new()
    }
}

impl Names {
    /// None.
    pub const fn new() -> Self {
        Self { entries: Vec::new(), outlines: [0; OUTLINES / 64] }
    }

    /// Adds one.
    pub fn add(&mut self, name: &[u8], place: Place) -> Result<(), OutOfMemory> {
        if place == Place::Operator {
            for (_, words) in OPERATOR_WORDS.iter().filter(|(operator, _)| *operator == name) {
                for word in *words {
                    self.add(word, Place::Anywhere)?;
                }
            }
        }
        self.insert((key(name.iter().copied()), place))
    }

    /// Adds those of others.
    pub fn add_all(&mut self, others: &Self) -> Result<(), OutOfMemory> {
        others.entries.iter().try_for_each(|entry| self.insert(*entry))
    }

    fn insert(&mut self, entry: (Key, Place)) -> Result<(), OutOfMemory> {
        match self.entries.binary_search_by(|known| order(known, &entry)) {
            Ok(_) => Ok(()),
            Err(at) => {
                self.entries.try_reserve(1).map_err(|_| OutOfMemory)?;
                self.entries.insert(at, entry);
                let length = entry.0.iter().position(|byte| *byte == 0).unwrap_or(KEY_BYTES);
                let outline = outline(entry.0.get(..length).unwrap_or_default());
                if let Some(bits) = self.outlines.get_mut(outline / 64) {
                    *bits |= 1 << (outline % 64);
                }
                Ok(())
            }
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a statement mentions one of them.
    pub fn are_mentioned_in(&self, text: &[u8]) -> bool {
        !self.entries.is_empty() && self.mentioned(text, 0)
    }

    /// Whether the body of a function mentions one of them, other than those whose names are ordinary
    /// words.
    pub fn are_mentioned_in_body(&self, body: &[u8]) -> bool {
        !self.entries.is_empty() && self.mentioned(body, 1)
    }

    /// Whether this is one of them: a name as it is in the catalogs.
    pub fn contain(&self, name: &[u8]) -> bool {
        let key = key(name.iter().copied());
        self.places(&key).next().is_some()
    }

    fn mentioned(&self, text: &[u8], depth: usize) -> bool {
        if depth > DEPTH {
            return true;
        }
        let mut is_call_if_parenthesis = false;
        let mut is_behind_point = false;
        for token in Tokens::of(text) {
            if matches!(token.kind, Kind::Space | Kind::Comment) {
                continue;
            }
            let content = text.get(token.content.clone()).unwrap_or_default();
            let is_after_name = std::mem::take(&mut is_call_if_parenthesis);
            let was_point = std::mem::replace(&mut is_behind_point, content == b".");
            let found = match token.kind {
                Kind::Word if !self.may_be_known(content) => continue,
                Kind::Word => key(content.iter().copied()),
                Kind::QuotedIdentifier | Kind::OpenIdentifier => {
                    // Unicode escapes spell any name.
                    if token.content.start > token.range.start + 1 {
                        return true;
                    }
                    // In a line of CONTEXT, what is quoted is a statement.
                    if content.iter().any(|byte| matches!(byte, b'(' | b' ' | b'\n'))
                        && self.mentioned(content, depth + 1)
                    {
                        return true;
                    }
                    key(undoubled(content))
                }
                Kind::String => {
                    if self.may_hold_code(content) && self.mentioned(content, depth + 1) {
                        return true;
                    }
                    continue;
                }
                Kind::Operator if self.has_operator(content) => return true,
                _ if is_after_name && content == b"(" => return true,
                _ => continue,
            };
            for place in self.places(&found) {
                match place {
                    Place::Anywhere => return true,
                    Place::Code if depth == 0 => return true,
                    Place::Code => {}
                    Place::Call if was_point => return true,
                    Place::Call => is_call_if_parenthesis = true,
                    // No word has the key of an operator, and an identifier in quotes is none.
                    Place::Operator => {}
                }
            }
        }
        false
    }

    /// Whether a token is one of the operators, or one with signs behind it that are operators of their own:
    /// `a =-1`.
    fn has_operator(&self, token: &[u8]) -> bool {
        let mut operator = if token == b"!=" { b"<>" } else { token };
        loop {
            if self.may_be_known(operator)
                && self.places(&key(operator.iter().copied())).any(|place| place == Place::Operator)
            {
                return true;
            }
            match operator {
                [rest @ .., b'+' | b'-'] if !rest.is_empty() => operator = rest,
                _ => return false,
            }
        }
    }

    fn may_be_known(&self, word: &[u8]) -> bool {
        let outline = outline(word);
        self.outlines.get(outline / 64).is_some_and(|bits| bits >> (outline % 64) & 1 == 1)
    }

    /// Cheap: most strings hold no letter after another.
    fn may_hold_code(&self, content: &[u8]) -> bool {
        content
            .windows(2)
            .any(|pair| matches!(pair, [a, b] if starts_word(*a) && continues_word(*b)))
            || content.contains(&b'"')
    }

    fn places(&self, key: &Key) -> impl Iterator<Item = Place> + '_ {
        let first = self.entries.partition_point(|(known, _)| known < key);
        let key = *key;
        self.entries
            .iter()
            .skip(first)
            .take_while(move |(known, _)| *known == key)
            .map(|(_, place)| *place)
    }
}

/// Calls `visit` with each name of a prepared statement that a text executes, as it is known: without quotes, in lower
/// case if it had none, ended by a zero byte; and with whether nothing but a name can follow the word there: not in a
/// string, the code of DO, in which EXECUTE takes a text, but in a string in that, and outside of all. Whether `visit`
/// answered `true` once.
pub fn executes(text: &[u8], visit: &mut dyn FnMut(&[u8; 64], bool) -> bool) -> bool {
    executes_at(text, 0, visit)
}

fn executes_at(text: &[u8], depth: usize, visit: &mut dyn FnMut(&[u8; 64], bool) -> bool) -> bool {
    let mut is_after_execute = false;
    for token in Tokens::of(text) {
        if matches!(token.kind, Kind::Space | Kind::Comment) {
            continue;
        }
        let content = text.get(token.content.clone()).unwrap_or_default();
        let is_name = std::mem::replace(
            &mut is_after_execute,
            token.kind == Kind::Word && content.eq_ignore_ascii_case(b"execute"),
        );
        let mut name = [0; 64];
        let places = name.iter_mut().take(63);
        match token.kind {
            Kind::Word if is_name => {
                places.zip(content).for_each(|(to, from)| *to = from.to_ascii_lowercase());
            }
            Kind::QuotedIdentifier if is_name && token.content.start == token.range.start + 1 => {
                places.zip(undoubled(content)).for_each(|(to, from)| *to = from);
            }
            // Escapes spell any name.
            Kind::QuotedIdentifier if is_name => return true,
            Kind::String if depth >= DEPTH || executes_at(content, depth + 1, visit) => {
                return true;
            }
            _ => continue,
        }
        if visit(&name, depth != 1) {
            return true;
        }
    }
    false
}

fn order(a: &(Key, Place), b: &(Key, Place)) -> std::cmp::Ordering {
    a.0.cmp(&b.0).then_with(|| (a.1 as u8).cmp(&(b.1 as u8)))
}

fn key(name: impl Iterator<Item = u8>) -> Key {
    let mut key = [0; KEY_BYTES + 1];
    for (to, from) in key.iter_mut().take(KEY_BYTES).zip(name) {
        *to = folded(from);
    }
    key
}

/// A number below `OUTLINES` of the first bytes and the length of what [`key`] makes of a name.
fn outline(name: &[u8]) -> usize {
    let byte = |at: usize| name.get(at).map_or(0, |byte| usize::from(folded(*byte)));
    let mixed = byte(0) ^ byte(1) << 3 ^ byte(2) << 6 ^ name.len().min(KEY_BYTES) << 5;
    mixed % OUTLINES
}

fn folded(byte: u8) -> u8 {
    if byte.is_ascii() { byte.to_ascii_lowercase() } else { 0x80 }
}

fn undoubled(content: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let mut was_quote = false;
    content.iter().copied().filter(move |byte| {
        was_quote = *byte == b'"' && !was_quote;
        *byte != b'"' || was_quote
    })
}
