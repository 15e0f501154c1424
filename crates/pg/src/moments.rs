//! Dates, times and intervals inside of types, and the words in their texts that are something else each day or in
//! each place.

use fieldcrypt_error::Unclear;
use pgrx::pg_sys::{self, Oid};

use super::version;

/// Which of them a type holds: by itself, as a domain, or in arrays, ranges and rows.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Moments {
    /// A date or a time of day, with or without a zone.
    pub has_time: bool,
    /// An interval.
    pub has_interval: bool,
    /// It is one of these or a domain over one: its text is nothing else.
    pub is_plain: bool,
}

/// Types within types that are followed; a type can't hold itself, but a long chain can be built.
const MAX_DEPTH: usize = 16;

impl Moments {
    /// What a type holds.
    pub fn of(type_oid: Oid) -> Self {
        let mut found = Self { is_plain: true, ..Self::default() };
        if !text_never_has_any(type_oid) {
            found.look_into(type_oid, 0);
        }
        found
    }

    /// Whether it holds any.
    pub fn has_any(self) -> bool {
        self.has_time || self.has_interval
    }

    fn look_into(&mut self, type_oid: Oid, depth: usize) {
        match type_oid {
            pg_sys::DATEOID
            | pg_sys::TIMEOID
            | pg_sys::TIMETZOID
            | pg_sys::TIMESTAMPOID
            | pg_sys::TIMESTAMPTZOID => return self.has_time = true,
            pg_sys::INTERVALOID => return self.has_interval = true,
            _ => {}
        }
        if depth > MAX_DEPTH {
            // What nobody has looked into may hold anything.
            (self.has_time, self.has_interval) = (true, true);
            return;
        }
        // SAFETY: catalog look-ups by type; the descriptor is a copy.
        unsafe {
            let base = pg_sys::getBaseType(type_oid);
            if base != type_oid {
                return self.look_into(base, depth + 1);
            }
            self.is_plain = false;
            let element = pg_sys::get_element_type(base);
            match pg_sys::get_typtype(base) as u8 {
                _ if element != pg_sys::InvalidOid => self.look_into(element, depth + 1),
                pg_sys::TYPTYPE_RANGE => {
                    self.look_into(pg_sys::get_range_subtype(base), depth + 1);
                }
                pg_sys::TYPTYPE_MULTIRANGE => {
                    self.look_into(pg_sys::get_multirange_range(base), depth + 1);
                }
                pg_sys::TYPTYPE_COMPOSITE => {
                    let descriptor = pg_sys::lookup_rowtype_tupdesc_copy(base, -1);
                    for index in 0..(*descriptor).natts as usize {
                        let attribute = &*version::attribute(descriptor, index);
                        if !attribute.attisdropped {
                            self.look_into(attribute.atttypid, depth + 1);
                        }
                    }
                    pg_sys::FreeTupleDesc(descriptor);
                }
                _ => {}
            }
        }
    }
}

/// Types that are read most often, without a look into the catalogs.
fn text_never_has_any(type_oid: Oid) -> bool {
    matches!(
        type_oid,
        pg_sys::TEXTOID
            | pg_sys::VARCHAROID
            | pg_sys::JSONBOID
            | pg_sys::INT4OID
            | pg_sys::INT8OID
            | pg_sys::NUMERICOID
            | pg_sys::FLOAT8OID
            | pg_sys::BOOLOID
            | pg_sys::UUIDOID
            | pg_sys::BYTEAOID
    )
}

/// Whether a text begins as one that another session wrote in its own order, such as `04/03/2001`: one or two digits,
/// then another number. Which of them is the month, nothing says.
pub(super) fn begins_with_day_or_month(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (1..=2).contains(&digits)
        && matches!(text.get(digits), Some(b'/' | b'-' | b'.'))
        && text.get(digits + 1).is_some_and(u8::is_ascii_digit)
}

/// Words that stand for another day, or time of day, each time they are read.
const OF_THE_CLOCK: [&[u8]; 4] = [b"now", b"today", b"tomorrow", b"yesterday"];

/// All other words that the text of a date, a time, an interval or a number is made of. What is none of them may be a
/// time zone: abbreviations are several zones' (IST is India's, Israel's and Ireland's), and zones with names move.
const KNOWN: &str = "jan january feb february mar march apr april may jun june jul july aug august \
    sep sept september oct october nov november dec december \
    sun sunday mon monday tue tues tuesday wed weds wednesday thu thur thurs thursday fri friday sat saturday \
    am pm ad bc at on t j jd julian z zulu utc gmt epoch infinity inf allballs nan e null f true false \
    p y yr yrs year years m mm mons month months w week weeks d day days h hr hrs hour hours \
    min mins minute minutes s sec secs second seconds ms msec msecs us usec usecs ago decade";

fn is_known(word: &[u8]) -> bool {
    KNOWN.split(' ').any(|known| known.as_bytes() == word)
}

/// The first thing in the text of a type with times in it that is something else for another reader. Of a row or an
/// array each value is looked at by itself. A word beside a digit may be a zone; a value without digits is a time by
/// a word of the clock only.
pub(super) fn unclear_word(text: &[u8], is_plain: bool) -> Option<Unclear> {
    let mut value = Value::default();
    let mut in_quotes = false;
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' if !is_plain => value.take(bytes.next().unwrap_or(b' ')),
            b'"' if !is_plain => in_quotes = !in_quotes,
            b'{' | b'}' | b'(' | b')' | b'[' | b']' | b',' if !is_plain && !in_quotes => {
                if let Some(unclear) = value.unclear() {
                    return Some(unclear);
                }
                value = Value::default();
            }
            byte => value.take(byte),
        }
    }
    value.unclear()
}

/// What is known of a value while its bytes go by.
#[derive(Default)]
struct Value {
    /// The word that goes by, as far as it is kept, and its length.
    word: [u8; LONGEST],
    length: usize,
    has_digit: bool,
    has_clock: bool,
    has_unknown: bool,
}

const LONGEST: usize = 9;

impl Value {
    fn take(&mut self, byte: u8) {
        if byte.is_ascii_alphabetic() || !byte.is_ascii() {
            if let Some(place) = self.word.get_mut(self.length) {
                *place = byte.to_ascii_lowercase();
            }
            self.length = self.length.saturating_add(1);
        } else {
            self.end_word();
            self.has_digit |= byte.is_ascii_digit();
        }
    }

    fn end_word(&mut self) {
        match self.word.get(..self.length) {
            Some(b"") => {}
            Some(word) if OF_THE_CLOCK.contains(&word) => self.has_clock = true,
            Some(word) if is_known(word) => {}
            _ => self.has_unknown = true,
        }
        self.length = 0;
    }

    fn unclear(&mut self) -> Option<Unclear> {
        self.end_word();
        if self.has_clock {
            Some(Unclear::Clock)
        } else {
            (self.has_digit && self.has_unknown).then_some(Unclear::Zone)
        }
    }
}
