//! Points in time as RFC 3339 writes them, in one form only: `2026-11-23T08:15:30.123456Z`.

use fieldcrypt_envelope::calendar::{date, days};

const DAY: i64 = 86_400_000_000;

/// 2000-01-01 00:00 UTC, from where Postgres counts its microseconds.
pub const UNTIL_2000: i64 = 10_957 * DAY;

/// Microseconds since 1970-01-01 00:00 UTC as a text. `None` outside of the years 0000 to 9999.
pub fn to_text(microseconds: i64) -> Option<String> {
    let (days, rest) = (microseconds.div_euclid(DAY), microseconds.rem_euclid(DAY));
    let (year, month, day) = date(days);
    let (seconds, fraction) = (rest / 1_000_000, rest % 1_000_000);
    (0..=9999).contains(&year).then(|| {
        format!(
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{fraction:06}Z",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        )
    })
}

/// Reads what [`to_text`] writes, and nothing else.
pub fn parse(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let days = days(number(0..4)?, number(5..7)?, number(8..10)?);
    let seconds = (number(11..13)? * 60 + number(14..16)?) * 60 + number(17..19)?;
    let microseconds = days * DAY + seconds * 1_000_000 + number(20..26)?;
    // Whatever is not exactly so (separators, a 31st of June, an hour 24) does not come back.
    (to_text(microseconds)? == text).then_some(microseconds)
}

#[cfg(test)]
mod tests {
    use super::{DAY, UNTIL_2000, parse, to_text};

    #[test]
    fn known_times_have_their_text() {
        let of = |text: &str| parse(text).unwrap_or_else(|| panic!("{text}"));
        assert_eq!(of("1970-01-01T00:00:00.000000Z"), 0);
        assert_eq!(of("2000-01-01T00:00:00.000000Z"), UNTIL_2000);
        assert_eq!(UNTIL_2000, 946_684_800_000_000);
        assert_eq!(of("2000-02-29T12:00:00.000001Z"), 951_825_600_000_001);
        assert_eq!(of("2026-11-23T00:30:00.500000Z"), 1_795_393_800_500_000);
        assert_eq!(of("1969-12-31T23:59:59.999999Z"), -1);
        assert_eq!(
            to_text(253_402_300_799_999_999).as_deref(),
            Some("9999-12-31T23:59:59.999999Z")
        );
        assert_eq!(to_text(253_402_300_800_000_000), None);
        assert_eq!(to_text(i64::MAX), None);
        assert_eq!(to_text(i64::MIN), None);
    }

    #[test]
    fn every_day_of_four_centuries_comes_back() {
        for day in -80_000..80_000 {
            let text = to_text(day * DAY + 7).unwrap();
            assert_eq!(parse(&text), Some(day * DAY + 7), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "2026-11-23",
            "2026-11-23T00:30:00Z",
            "2026-11-23T00:30:00.500Z",
            "2026-11-23t00:30:00.500000Z",
            "2026-11-23T00:30:00.500000z",
            "2026-11-23T00:30:00.500000+00:00",
            "2026-11-23 00:30:00.500000Z",
            "2026-11-31T00:30:00.500000Z",
            "2026-02-29T00:30:00.500000Z",
            "2026-13-01T00:30:00.500000Z",
            "2026-00-01T00:30:00.500000Z",
            "2026-11-23T24:00:00.000000Z",
            "2026-11-23T00:60:00.000000Z",
            "2026-11-23T00:30:60.500000Z",
            " 2026-11-23T00:30:00.50000Z",
            "+026-11-23T00:30:00.500000Z",
            "2026-11-23T00:30:00.500000Z ",
            "２026-11-23T00:30:00.500000Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
