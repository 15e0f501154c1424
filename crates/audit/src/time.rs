//! Points in time as RFC 3339 writes them, in one form only: `2026-11-23T08:15:30.123456Z`.

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

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
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

/// The inverse of [`date`].
fn days(year: i64, month: i64, day: i64) -> i64 {
    let shifted_year = year - i64::from(month <= 2);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let (era, year_of_era) = (shifted_year.div_euclid(400), shifted_year.rem_euclid(400));
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
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
