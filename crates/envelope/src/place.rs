//! The text of a context, in one fixed form: a name, and the values of a row's key.
//!
//! What a value is bound to has to come out the same for ever, whatever a session's settings, so no output function
//! of Postgres and no locale has a say in it. `docs/format.md` is the specification; values in the field depend on
//! every line of it.

use std::fmt::Write;

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
pub fn place(parts: &[Part<'_>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(parts.len() * 24);
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            out.push(b'/');
        }
        part.write(&mut out);
    }
    out
}

impl Part<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let text = match *self {
            Self::Text(text) => return write_escaped(text, out),
            Self::Numeric(digits) => return out.extend_from_slice(without_trailing_zeros(digits)),
            Self::Integer(number) => number.to_string(),
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
fn without_trailing_zeros(digits: &[u8]) -> &[u8] {
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

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar for all times.
fn date(days: i64) -> (i64, i64, i64) {
    // Counted in eras of 400 years that begin on a 1st of March, so that a leap day ends a year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_number_are_as_the_documents_say() {
        assert_eq!(place(&[Part::Text(b"patients.ssn"), Part::Integer(17)]), b"patients.ssn/17");
    }

    #[test]
    fn no_two_lists_of_texts_share_a_form() {
        let texts: [&[u8]; 8] = [b"", b"a", b"/", b"%", b"%2F", b"%25", b"a/b", b"2F"];
        let mut forms = Vec::new();
        for one in texts {
            forms.push(place(&[Part::Text(one)]));
            for other in texts {
                forms.push(place(&[Part::Text(one), Part::Text(other)]));
            }
        }
        let count = forms.len();
        forms.sort();
        forms.dedup();
        assert_eq!(forms.len(), count);
    }

    #[test]
    fn every_day_of_the_calendar_follows_on_the_one_before() {
        let mut before = date(-1_000_000);
        for days in -999_999..1_000_000 {
            let (year, month, day) = date(days);
            let is_next = (year, month) == (before.0, before.1) && day == before.2 + 1
                || day == 1 && (year, month) == (before.0, before.1 + 1)
                || (month, day) == (1, 1)
                    && (before.1, before.2) == (12, 31)
                    && year == before.0 + 1;
            assert!(is_next, "{before:?} {:?}", (year, month, day));
            before = (year, month, day);
        }
        assert_eq!(date(0), (1970, 1, 1));
    }
}
