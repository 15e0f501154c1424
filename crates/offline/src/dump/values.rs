//! Values of columns as `pg_dump` writes them, and what they are as parts of a context.

use fieldcrypt_envelope::calendar;
use fieldcrypt_envelope::{MAX_CONTEXT_BYTES, Part, place};

use super::sql::{Cursor, Kind as Token};

/// What a row has in a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// What stands there is not understood.
    Unknown,
    Null,
    /// This, as the dump writes it.
    Written(Vec<u8>),
}

/// What is known of a column's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// The dump does not say. Most types have one form, which is that of a text.
    Unknown,
    Text,
    /// Padded with blanks, which mean nothing.
    Padded,
    Integer,
    Numeric,
    Boolean,
    Uuid,
    Date,
    Timestamp,
    Timestamptz,
    /// A cast to text says how long its network is, its output only if it is not all of it.
    Inet,
    /// Its text is what it is in a concatenation, but it is no part of `fieldcrypt.context()`.
    Other,
    /// `||` means something else for it.
    Composed,
    /// Its text is another one under other settings.
    Unsettled,
}

impl Type {
    /// Reads a type's name; whether it has a length or precision, by which a cast would change values.
    pub fn read(cursor: &mut Cursor<'_>) -> Option<(Vec<String>, bool)> {
        let mut names = cursor.names()?;
        let is_builtin = names.len() == 1 || names.first().is_some_and(|it| it == "pg_catalog");
        let mut has_length = skip_length(cursor);
        if is_builtin {
            let more: &[&[&str]] = match names.last()?.as_str() {
                "character" | "bit" => &[&["varying"]],
                "double" => &[&["precision"]],
                "timestamp" | "time" => &[&["with", "time", "zone"], &["without", "time", "zone"]],
                _ => &[],
            };
            for words in more {
                let start = cursor.at;
                if words.iter().all(|word| cursor.word(word)) {
                    names.push(words.join(" "));
                    break;
                }
                cursor.at = start;
            }
            has_length |= skip_length(cursor);
        }
        while cursor.take(b'[') {
            while !cursor.take(b']') {
                cursor.next()?;
            }
            names.push("[]".into());
        }
        Some((names, has_length))
    }

    /// The type of this name; `None` if it is none of Postgres's own.
    pub fn of(names: &[String]) -> Option<Self> {
        let names = names.strip_prefix(&["pg_catalog".to_owned()]).unwrap_or(names);
        let name = names.join(" ");
        Some(match name.as_str() {
            _ if name.ends_with("[]") => Self::Composed,
            "text" | "varchar" | "character varying" | "name" => Self::Text,
            "character" | "char" | "bpchar" => Self::Padded,
            "smallint" | "integer" | "bigint" | "int" | "int2" | "int4" | "int8" => Self::Integer,
            "numeric" | "decimal" => Self::Numeric,
            "boolean" | "bool" => Self::Boolean,
            "uuid" => Self::Uuid,
            "date" => Self::Date,
            "timestamp" | "timestamp without time zone" => Self::Timestamp,
            "timestamptz" | "timestamp with time zone" => Self::Timestamptz,
            "bytea" | "json" | "jsonb" | "tsvector" | "tsquery" | "bit" | "bit varying"
            | "varbit" => Self::Composed,
            "real" | "double precision" | "float4" | "float8" | "cidr" | "macaddr" | "oid"
            | "interval" => Self::Other,
            "inet" => Self::Inet,
            "money" | "xml" | "tstzrange" | "tstzmultirange" | "regclass" | "regtype"
            | "regproc" | "regprocedure" | "regoper" | "regoperator" => Self::Unsettled,
            _ => return None,
        })
    }
}

fn skip_length(cursor: &mut Cursor<'_>) -> bool {
    let start = cursor.at;
    if cursor.take(b'(') {
        loop {
            match cursor.next() {
                Some(Token::Mark(b')')) => return true,
                Some(Token::Number(_) | Token::Mark(b',' | b'-')) => {}
                _ => break,
            }
        }
    }
    cursor.at = start;
    false
}

/// A value as it is written, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    pub written: Vec<u8>,
    pub of: Type,
}

impl Value {
    pub fn text(written: impl Into<Vec<u8>>) -> Self {
        Self { written: written.into(), of: Type::Text }
    }

    /// What a cast to text makes of it under the settings that contexts are computed with; `None` if that is not known.
    pub fn as_text(&self) -> Option<Vec<u8>> {
        let written = self.written.as_slice();
        Some(match self.of {
            Type::Padded => without_blanks(written).to_vec(),
            Type::Boolean => boolean(written)?.to_string().into_bytes(),
            Type::Timestamptz => in_utc(time(written, true)?)?,
            Type::Inet if !written.contains(&b'/') => {
                [written, if written.contains(&b':') { b"/128" } else { b"/32" }].concat()
            }
            Type::Composed | Type::Unsettled => return None,
            _ => written.to_vec(),
        })
    }

    /// What it is as a text, cast.
    pub fn cast(&self, to: Type) -> Option<Self> {
        let written = match (self.of, to) {
            (_, Type::Text) => self.as_text()?,
            (of, to) if of == to => self.written.clone(),
            (Type::Integer | Type::Text | Type::Unknown, Type::Integer) => {
                integer(self.written.trim_ascii())?.to_string().into_bytes()
            }
            (Type::Text | Type::Unknown, Type::Uuid) => {
                place(&[Part::Uuid(&uuid(&self.written)?)], MAX_CONTEXT_BYTES)?
            }
            (Type::Text | Type::Unknown, Type::Date) => {
                place(&[Part::Date(day(&self.written)?)], MAX_CONTEXT_BYTES)?
            }
            _ => return None,
        };
        Some(Self { written, of: to })
    }

    /// Calls `use_it` with the part of a context that it is; `None` if it is none.
    pub fn with_part<R>(&self, use_it: impl FnOnce(Part<'_>) -> R) -> Option<R> {
        let written = self.written.as_slice();
        Some(match self.of {
            Type::Text | Type::Unknown => use_it(Part::Text(written)),
            Type::Padded => use_it(Part::Text(without_blanks(written))),
            Type::Integer => use_it(Part::Integer(integer(written)?)),
            Type::Numeric => use_it(Part::Numeric(written)),
            Type::Boolean => use_it(Part::Boolean(boolean(written)?)),
            Type::Uuid => use_it(Part::Uuid(&uuid(written)?)),
            Type::Date => use_it(Part::Date(day(written)?)),
            Type::Timestamp => use_it(Part::Timestamp(time(written, false)?)),
            Type::Timestamptz => use_it(Part::Timestamptz(time(written, true)?)),
            Type::Inet | Type::Other | Type::Composed | Type::Unsettled => return None,
        })
    }
}

fn without_blanks(text: &[u8]) -> &[u8] {
    let end = text.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    &text[..end]
}

fn integer(text: &[u8]) -> Option<i64> {
    str::from_utf8(text).ok()?.parse().ok()
}

fn boolean(text: &[u8]) -> Option<bool> {
    match text {
        b"t" | b"true" => Some(true),
        b"f" | b"false" => Some(false),
        _ => None,
    }
}

fn uuid(text: &[u8]) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text
        .iter()
        .filter(|byte| !b"-{}".contains(byte))
        .map(|byte| char::from(*byte).to_digit(16).map(|digit| digit as u8))
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    if digits.len() == 32 { bytes.try_into().ok() } else { None }
}

const DAY: i64 = 86_400_000_000;
/// From 1970-01-01 to 2000-01-01.
const TO_2000: i64 = 10_957;

/// Days since 2000-01-01 of a date in ISO form.
fn day(text: &[u8]) -> Option<i32> {
    match text {
        b"infinity" => return Some(i32::MAX),
        b"-infinity" => return Some(i32::MIN),
        _ => {}
    }
    let text = str::from_utf8(text).ok()?;
    let (text, is_before_christ) = era(text);
    i32::try_from(days_of(text, is_before_christ)?).ok()
}

fn era(text: &str) -> (&str, bool) {
    text.strip_suffix(" BC").map_or((text, false), |text| (text, true))
}

fn days_of(text: &str, is_before_christ: bool) -> Option<i64> {
    let mut fields = text.split('-');
    let (year, month, day) = (fields.next()?, fields.next()?, fields.next()?);
    let number = |text: &str, most: usize| -> Option<i64> {
        let is_number = !text.is_empty() && text.len() <= most;
        (is_number && text.bytes().all(|it| it.is_ascii_digit())).then(|| text.parse().ok())?
    };
    let (year, month, day) = (number(year, 6)?, number(month, 2)?, number(day, 2)?);
    if fields.next().is_some() || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = if is_before_christ { 1 - year } else { year };
    Some(calendar::days(year, month, day) - TO_2000)
}

/// Microseconds since 2000-01-01 00:00 of a time in ISO form.
fn time(text: &[u8], has_zone: bool) -> Option<i64> {
    match text {
        b"infinity" => return Some(i64::MAX),
        b"-infinity" => return Some(i64::MIN),
        _ => {}
    }
    let (text, is_before_christ) = era(str::from_utf8(text).ok()?);
    let (date, clock) = text.split_once(' ')?;
    let (clock, offset) = match clock.find(['+', '-']) {
        Some(at) if has_zone => {
            let sign = if clock[at..].starts_with('-') { -1 } else { 1 };
            (&clock[..at], sign * seconds(&clock[at + 1..])?)
        }
        None if !has_zone => (clock, 0),
        _ => return None,
    };
    let (whole, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    if fraction.len() > 6 || !fraction.bytes().all(|it| it.is_ascii_digit()) {
        return None;
    }
    let micros: i64 = format!("{fraction:0<6}").parse().ok()?;
    let seconds = seconds(whole)? - offset;
    days_of(date, is_before_christ)?
        .checked_mul(DAY)?
        .checked_add(seconds.checked_mul(1_000_000)?.checked_add(micros)?)
}

/// `hh[:mm[:ss]]`
fn seconds(text: &str) -> Option<i64> {
    let mut seconds = 0;
    let mut unit = 3600;
    for field in text.split(':') {
        if field.len() != 2 || unit == 0 || !field.bytes().all(|it| it.is_ascii_digit()) {
            return None;
        }
        seconds += unit * field.parse::<i64>().ok()?;
        unit /= 60;
    }
    Some(seconds)
}

/// As Postgres writes it with DateStyle ISO and TimeZone UTC.
fn in_utc(microseconds: i64) -> Option<Vec<u8>> {
    let form =
        String::from_utf8(place(&[Part::Timestamptz(microseconds)], MAX_CONTEXT_BYTES)?).ok()?;
    let Some((date, rest)) = form.split_once('T') else { return Some(form.into_bytes()) };
    let (clock, era) = rest.split_once('Z')?;
    let clock = clock.trim_end_matches('0').trim_end_matches('.');
    Some(format!("{date} {clock}+00{era}").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(of: Type, written: &str) -> Option<String> {
        let value = Value { written: written.into(), of };
        value.with_part(|part| String::from_utf8(place(&[part], 1000).unwrap()).unwrap())
    }

    #[test]
    fn values_have_the_form_that_the_server_gives_them() {
        for (of, written, form) in [
            (Type::Integer, "-17", "-17"),
            (Type::Text, "a/b%", "a%2Fb%25"),
            (Type::Padded, "ab  ", "ab"),
            (Type::Numeric, "1.50", "1.5"),
            (Type::Boolean, "t", "true"),
            (
                Type::Uuid,
                "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
                "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            ),
            (Type::Date, "2001-03-04", "2001-03-04"),
            (Type::Date, "0044-03-15 BC", "0044-03-15 BC"),
            (Type::Date, "infinity", "infinity"),
            (Type::Timestamp, "2001-03-04 05:06:07.5", "2001-03-04T05:06:07.500000"),
            (Type::Timestamptz, "2001-03-04 05:06:07+02", "2001-03-04T03:06:07.000000Z"),
            (Type::Timestamptz, "2001-03-04 00:06:07.000001-03:30", "2001-03-04T03:36:07.000001Z"),
            (Type::Timestamptz, "1800-01-01 00:00:00+00:53:28", "1799-12-31T23:06:32.000000Z"),
        ] {
            assert_eq!(part(of, written).as_deref(), Some(form), "{written}");
        }
    }

    #[test]
    fn what_is_no_value_of_its_type_is_refused() {
        for (of, written) in [
            (Type::Integer, "1.5"),
            (Type::Boolean, "yes"),
            (Type::Uuid, "a0eebc99"),
            (Type::Date, "04.03.2001"),
            (Type::Date, "2001-13-04"),
            (Type::Date, "99999999999-01-01"),
            (Type::Timestamp, "2001-03-04 05:06:07+02"),
            (Type::Timestamptz, "2001-03-04 05:06:07"),
            (Type::Timestamptz, "2001-03-04 05:06:07.1234567+00"),
            (Type::Timestamptz, "999999-12-31 99:99:99+99:99:99:99"),
            (Type::Other, "1.5"),
        ] {
            assert_eq!(part(of, written), None, "{written}");
        }
    }

    #[test]
    fn a_time_is_cast_to_text_in_utc() {
        for (written, text) in [
            ("2001-03-04 05:06:07.500+02", "2001-03-04 03:06:07.5+00"),
            ("2001-03-04 05:06:00+00", "2001-03-04 05:06:00+00"),
            ("infinity", "infinity"),
        ] {
            let value = Value { written: written.into(), of: Type::Timestamptz };
            assert_eq!(value.as_text().unwrap(), text.as_bytes());
        }
    }
}
