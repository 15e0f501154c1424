//! Days of the Gregorian calendar, for all times: no locale, time zone or setting has a say in them.

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar for all times.
pub fn date(days: i64) -> (i64, i64, i64) {
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
pub fn days(year: i64, month: i64, day: i64) -> i64 {
    let shifted_year = year - i64::from(month <= 2);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let (era, year_of_era) = (shifted_year.div_euclid(400), shifted_year.rem_euclid(400));
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::date;

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
