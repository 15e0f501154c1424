//! The hours in which values are usually decrypted: `Mon-Fri 07:00-19:00 Europe/Berlin`.

/// The hours of a week. Days and zone may be left out.
#[derive(Debug, PartialEq, Eq)]
pub struct Hours<'a> {
    days: [bool; 7],
    /// Minute of the day at which they begin.
    pub start: u16,
    /// Minute of the day at which they end: of the next day, if that is not after the start.
    pub end: u16,
    /// A name of a time zone, for Postgres to judge.
    pub zone: Option<&'a str>,
}

const NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

impl<'a> Hours<'a> {
    /// Reads what the setting says.
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace().peekable();
        let days = match words.next_if(|word| !word.contains(':')) {
            Some(word) => days(word)?,
            None => [true; 7],
        };
        let (start, end) = words.next()?.split_once('-')?;
        let hours = Self { days, start: minute(start)?, end: minute(end)?, zone: words.next() };
        (words.next().is_none() && hours.start < DAY && hours.start != hours.end).then_some(hours)
    }

    /// The days as numbers, Monday is 1.
    pub fn days(&self) -> Vec<usize> {
        (1..=7).filter(|day| self.days[day - 1]).collect()
    }
}

const DAY: u16 = 24 * 60;

/// `Mon-Fri`, `Mon,Wed`, or both mixed.
fn days(text: &str) -> Option<[bool; 7]> {
    let number = |name: &str| NAMES.iter().position(|known| known.eq_ignore_ascii_case(name));
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let last = number(last)?;
        let mut day = number(first)?;
        days[day] = true;
        while day != last {
            day = (day + 1) % 7;
            days[day] = true;
        }
    }
    Some(days)
}

/// `HH:MM`, up to 24:00.
fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let number = |digits: &str| {
        (digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| digits.parse::<u16>().ok())
            .flatten()
    };
    let (hour, minute) = (number(hour)?, number(minute)?);
    (minute < 60 && hour * 60 + minute <= DAY).then_some(hour * 60 + minute)
}
