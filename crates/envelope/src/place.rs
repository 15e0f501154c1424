//! The text of a context, in one fixed form: a name, and the values of a row's key.
//!
//! What a value is bound to has to come out the same for ever, whatever a session's settings, so no output function
//! of Postgres and no locale has a say in it. `docs/format.md` is the specification; values in the field depend on
//! every line of it.

use std::fmt::Write;

use crate::calendar::date;

/// One part of a context: the name, or a value of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'a> {
    /// A text in the database's encoding, of which each byte below 0x80 is a character of ASCII.
    Text(&'a [u8]),
    /// A whole number.
    Integer(i64),
    /// A number with all its digits, as Postgres writes a `numeric`: no exponent, maybe zeros at the end.
    Numeric(&'a [u8]),
    /// True or false.
    Boolean(bool),
    /// A UUID.
    Uuid(&'a [u8; 16]),
    /// Days since 2000-01-01, the lowest and the highest being the infinite ones.
    Date(i32),
    /// Microseconds since 2000-01-01 00:00 of some clock, the lowest and the highest being the infinite ones.
    Timestamp(i64),
    /// The same in UTC.
    Timestamptz(i64),
}

/// The parts, with `/` between them. In texts `%` is `%25` and `/` is `%2F`, so no two lists of as many texts share
/// a form.
///
/// `None` if that would be longer than `most` bytes, of which nothing has been written then. A caller who has to ask
/// for memory asks for `most` and [`MAX_SHORT_BYTES`] for each part.
pub fn place(parts: &[Part<'_>], most: usize) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    place_into(&mut out, parts, most).then_some(out)
}

/// The same into memory that was used before, which holds nothing else afterwards; whether there was room.
pub fn place_into(out: &mut Vec<u8>, parts: &[Part<'_>], most: usize) -> bool {
    out.clear();
    let mut least = parts.len().saturating_sub(1);
    for part in parts {
        least = least.saturating_add(part.least_bytes());
        if least > most {
            return false;
        }
    }
    out.reserve(least + parts.len() * MAX_SHORT_BYTES);
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            out.push(b'/');
        }
        part.write(out);
    }
    out.len() <= most
}

/// Bytes that a context may have: it names a place, it is not a document.
pub const MAX_CONTEXT_BYTES: usize = 1 << 20;

/// Bytes of a part that is neither a text nor a numeric, at most.
pub const MAX_SHORT_BYTES: usize = 40;

impl Part<'_> {
    /// How long it is at least: exactly, where it may be long.
    fn least_bytes(&self) -> usize {
        match *self {
            Self::Text(text) => {
                let escaped = text.iter().filter(|byte| matches!(byte, b'%' | b'/')).count();
                text.len().saturating_add(2 * escaped)
            }
            Self::Numeric(digits) => without_trailing_zeros(digits).len(),
            _ => 1,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let text = match *self {
            Self::Text(text) => return write_escaped(text, out),
            Self::Numeric(digits) => return out.extend_from_slice(without_trailing_zeros(digits)),
            Self::Integer(number) => {
                return out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
            }
            Self::Boolean(value) => value.to_string(),
            Self::Uuid(bytes) => uuid(bytes),
            Self::Date(i32::MIN) | Self::Timestamp(i64::MIN) | Self::Timestamptz(i64::MIN) => {
                "-infinity".into()
            }
            Self::Date(i32::MAX) | Self::Timestamp(i64::MAX) | Self::Timestamptz(i64::MAX) => {
                "infinity".into()
            }
            Self::Date(days) => with_era(days.into(), ""),
            Self::Timestamp(microseconds) => timestamp(microseconds, ""),
            Self::Timestamptz(microseconds) => timestamp(microseconds, "Z"),
        };
        out.extend_from_slice(text.as_bytes());
    }
}

fn write_escaped(text: &[u8], out: &mut Vec<u8>) {
    for byte in text {
        match byte {
            b'%' => out.extend_from_slice(b"%25"),
            b'/' => out.extend_from_slice(b"%2F"),
            byte => out.push(*byte),
        }
    }
}

/// `1.50` as `1.5`, `2.00` as `2`; what has no point (`100`, `NaN`, `Infinity`) as it is.
pub(crate) fn without_trailing_zeros(digits: &[u8]) -> &[u8] {
    if !digits.contains(&b'.') {
        return digits;
    }
    let end = digits.iter().rposition(|digit| *digit != b'0').map_or(0, |last| last + 1);
    let digits = &digits[..end];
    digits.strip_suffix(b".").unwrap_or(digits)
}

fn uuid(bytes: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn timestamp(microseconds: i64, zone: &str) -> String {
    const DAY: i64 = 86_400_000_000;
    let (days, rest) = (microseconds.div_euclid(DAY), microseconds.rem_euclid(DAY));
    let (seconds, fraction) = (rest / 1_000_000, rest % 1_000_000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    with_era(days, &format!("T{hour:02}:{minute:02}:{second:02}.{fraction:06}{zone}"))
}

/// A day and what follows it, with ` BC` at the end before the year 1, which follows on 1 BC.
fn with_era(days_since_2000: i64, rest: &str) -> String {
    let (year, month, day) = date(days_since_2000 + 10_957);
    if year > 0 {
        format!("{year:04}-{month:02}-{day:02}{rest}")
    } else {
        format!("{:04}-{month:02}-{day:02}{rest} BC", 1 - year)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_number_are_as_the_documents_say() {
        let parts = [Part::Text(b"patients.ssn"), Part::Integer(17)];
        assert_eq!(place(&parts, 100).as_deref(), Some(b"patients.ssn/17".as_slice()));
    }

    #[test]
    fn what_would_be_longer_than_it_may_is_nothing() {
        let text = [b'/'; 1000];
        for (parts, length) in [
            (vec![Part::Text(&text)], 3000),
            (vec![Part::Text(b"a"), Part::Numeric(b"1.50"), Part::Integer(i64::MIN)], 26),
            (vec![Part::Text(b""), Part::Text(b"%"), Part::Timestamptz(i64::MIN + 1)], 37),
        ] {
            assert_eq!(place(&parts, length).map(|form| form.len()), Some(length));
            assert_eq!(place(&parts, length - 1), None);
        }
    }

    #[test]
    fn no_part_is_longer_than_is_reckoned_with() {
        for number in [i64::MIN, i64::MIN + 1, -1, 0, i64::MAX - 1, i64::MAX] {
            for part in [
                Part::Integer(number),
                Part::Timestamp(number),
                Part::Timestamptz(number),
                Part::Date(number as i32),
                Part::Uuid(&[0xff; 16]),
                Part::Boolean(false),
            ] {
                let length = place(&[part], 1000).map_or(usize::MAX, |form| form.len());
                assert!(length <= MAX_SHORT_BYTES, "{part:?}: {length}");
            }
        }
    }

    #[test]
    fn no_two_lists_of_texts_share_a_form() {
        let texts: [&[u8]; 8] = [b"", b"a", b"/", b"%", b"%2F", b"%25", b"a/b", b"2F"];
        let mut forms = Vec::new();
        for one in texts {
            forms.push(place(&[Part::Text(one)], 100));
            for other in texts {
                forms.push(place(&[Part::Text(one), Part::Text(other)], 100));
            }
        }
        let count = forms.len();
        forms.sort();
        forms.dedup();
        assert_eq!(forms.len(), count);
    }
}
