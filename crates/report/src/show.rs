//! How numbers, times and names are shown.

use std::fmt::{self, Display, Formatter, Write};

use crate::record::Count;

/// Characters of a name, and of a sentence, that are shown at most; the document has all of them.
const LONGEST_NAME: usize = 80;
const LONGEST_SENTENCE: usize = 400;
/// How many of them are from its end.
const END: usize = 16;

/// Digits in groups of three.
impl Display for Count {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let digits = self.0.unsigned_abs().to_string();
        if self.0 < 0 {
            formatter.write_char('-')?;
        }
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                formatter.write_char(',')?;
            }
            formatter.write_char(digit)?;
        }
        Ok(())
    }
}

/// A time of the document (`2026-11-22T21:10:00.000000Z`) to the minute. Other texts stay as they are.
pub struct Time<'a>(pub &'a Option<String>);

impl Display for Time<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => formatter.write_char('-'),
            Some(time) => match (time.get(..10), time.get(10..11), time.get(11..16)) {
                (Some(day), Some("T"), Some(minute)) if time.ends_with('Z') => {
                    write!(formatter, "{day} {minute}")
                }
                _ => formatter.write_str(time),
            },
        }
    }
}

/// The day of a time.
pub struct Day<'a>(pub &'a Option<String>);

impl Display for Day<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let time = Time(self.0).to_string();
        formatter.write_str(time.split_once(' ').map_or(time.as_str(), |(day, _)| day))
    }
}

/// A name that somebody chose: a long one without its middle, and with its length.
pub struct Name<'a>(pub &'a str);

impl Display for Name<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        shortened(self.0, LONGEST_NAME, formatter)
    }
}

/// What somebody wrote: a long one likewise.
pub struct Sentence<'a>(pub &'a str);

impl Display for Sentence<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        shortened(self.0, LONGEST_SENTENCE, formatter)
    }
}

fn shortened(text: &str, longest: usize, formatter: &mut Formatter<'_>) -> fmt::Result {
    let length = text.chars().count();
    if length <= longest {
        return formatter.write_str(text);
    }
    let start: String = text.chars().take(longest - END).collect();
    let end: String = text.chars().skip(length - END).collect();
    write!(formatter, "{start} [...] {end} ({} characters)", Count(length as i64))
}

/// Something, or a dash.
pub struct Or<'a, T>(pub &'a Option<T>);

impl<T: Display> Display for Or<'_, T> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(value) => value.fmt(formatter),
            None => formatter.write_char('-'),
        }
    }
}

/// A part of a whole, as a percentage that says 0 and 100 only where that is exact.
pub struct Percent(pub Count, pub Count);

impl Display for Percent {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let Self(Count(part), Count(whole)) = *self;
        if whole <= 0 {
            return formatter.write_char('-');
        }
        let percent = part as f64 * 100.0 / whole as f64;
        match percent {
            _ if part == 0 => formatter.write_str("0%"),
            _ if part == whole => formatter.write_str("100%"),
            _ if percent < 0.1 => formatter.write_str("<0.1%"),
            _ if percent > 99.9 => formatter.write_str(">99.9%"),
            _ => write!(formatter, "{percent:.1}%"),
        }
    }
}

/// "1 key", "2 keys".
pub struct Of(pub Count, pub &'static str, pub &'static str);

impl Display for Of {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.0, if self.0.0 == 1 { self.1 } else { self.2 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (-1234567, "-1,234,567"),
            (i64::MAX, "9,223,372,036,854,775,807"),
            (i64::MIN, "-9,223,372,036,854,775,808"),
        ] {
            assert_eq!(Count(number).to_string(), text);
        }
    }

    #[test]
    fn times_are_shown_to_the_minute_and_other_texts_as_they_are() {
        let show = |text: &str| Time(&Some(text.into())).to_string();
        assert_eq!(show("2026-11-22T21:10:59.000000Z"), "2026-11-22 21:10");
        assert_eq!(show("infinity"), "infinity");
        assert_eq!(show(""), "");
        assert_eq!(
            show("\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}TTTTZ"),
            "\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}TTTTZ"
        );
        assert_eq!(Time(&None).to_string(), "-");
        assert_eq!(Day(&Some("2026-11-22T21:10:59.000000Z".into())).to_string(), "2026-11-22");
    }

    #[test]
    fn long_names_lose_their_middle_and_tell_so() {
        assert_eq!(Name("acme").to_string(), "acme");
        assert_eq!(Name(&"x".repeat(80)).to_string(), "x".repeat(80));
        let shown = Name(&format!("{}{}", "\u{1F600}".repeat(990), "0123456789")).to_string();
        assert!(shown.ends_with("0123456789 (1,000 characters)"), "{shown}");
        assert_eq!(shown.matches('\u{1F600}').count(), 64 + 6);
    }

    #[test]
    fn a_percentage_is_100_only_for_all() {
        for (part, whole, text) in [
            (0, 0, "-"),
            (0, 5, "0%"),
            (5, 5, "100%"),
            (999_999, 1_000_000, ">99.9%"),
            (1, 1_000_000, "<0.1%"),
            (1, 3, "33.3%"),
        ] {
            assert_eq!(Percent(Count(part), Count(whole)).to_string(), text);
        }
    }
}
