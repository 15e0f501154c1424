//! The forms of the plaintext of a bound value: a closed list. What is sealed is the value as it was given, normalised
//! only to its type, so that it comes back as it was; folding is for the search tag alone.
//!
//! `docs/format.md` is the specification; values in the field depend on every line of it. Types of a fixed size have
//! plaintexts of a fixed size, since the length of a ciphertext shows: `true` must not be told from `false` by it.

use zeroize::Zeroizing;

use crate::folding;
use crate::place::without_trailing_zeros;

/// A form. The name of one that folds by a table has the table's Unicode version: another table is another form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Form {
    /// A text: UTF-8 without U+0000.
    Text = 1,
    /// A text that is compared in lower case, Unicode 17.0.
    Lower = 2,
    /// A text of which the digits are compared, Unicode 17.0.
    Digits = 3,
    /// A whole number of 64 bits.
    Integer = 4,
    /// A number with all its digits.
    Numeric = 5,
    /// A day.
    Date = 6,
    /// A moment.
    Timestamptz = 7,
    /// A UUID.
    Uuid = 8,
    /// True or false.
    Boolean = 9,
    /// A document, as Postgres writes a `jsonb`.
    Jsonb = 10,
}

/// A value, as its type gives it. No `Debug`: it is plaintext.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Value<'v> {
    /// Of the forms text, lower and digits.
    Text(&'v str),
    /// Of a `smallint`, `integer` or `bigint`.
    Integer(i64),
    /// As Postgres writes a `numeric`: no exponent, no zeros in front, all that it has at the end.
    Numeric(&'v str),
    /// Days since 2000-01-01, the lowest and the highest number being the infinite ones.
    Date(i32),
    /// Microseconds since 2000-01-01 00:00 UTC, the lowest and the highest number being the infinite ones.
    Timestamptz(i64),
    /// Its 16 bytes.
    Uuid([u8; 16]),
    /// True or false.
    Boolean(bool),
    /// As Postgres writes a `jsonb`.
    Jsonb(&'v str),
}

/// A value that is none of the form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotOfForm;

impl Form {
    /// All of them, by number.
    pub const ALL: [Self; 10] = [
        Self::Text,
        Self::Lower,
        Self::Digits,
        Self::Integer,
        Self::Numeric,
        Self::Date,
        Self::Timestamptz,
        Self::Uuid,
        Self::Boolean,
        Self::Jsonb,
    ];

    /// Its number, as a header has it (without the bit for loose values).
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The form with this number.
    pub fn of_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.number() == number)
    }

    /// Its name for ever: what a declaration keeps.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Lower => "lower-17.0",
            Self::Digits => "digits-17.0",
            Self::Integer => "integer",
            Self::Numeric => "numeric",
            Self::Date => "date",
            Self::Timestamptz => "timestamptz",
            Self::Uuid => "uuid",
            Self::Boolean => "boolean",
            Self::Jsonb => "jsonb",
        }
    }

    /// The form of this name. `lower` and `digits` alone are those with the newest table.
    pub fn of_name(name: &str) -> Option<Self> {
        match name {
            "lower" => Some(Self::Lower),
            "digits" => Some(Self::Digits),
            name => Self::ALL.into_iter().find(|form| form.name() == name),
        }
    }

    /// Whether its values may have search tags.
    pub fn is_searchable(self) -> bool {
        match self {
            Self::Text
            | Self::Lower
            | Self::Digits
            | Self::Integer
            | Self::Numeric
            | Self::Date
            | Self::Uuid => true,
            Self::Timestamptz | Self::Boolean | Self::Jsonb => false,
        }
    }

    /// The bytes that are sealed.
    pub fn encode<'v>(self, value: &Value<'v>) -> Result<Plaintext<'v>, NotOfForm> {
        let plaintext = match (self, *value) {
            (Self::Text | Self::Lower | Self::Digits, Value::Text(text))
            | (Self::Numeric, Value::Numeric(text))
            | (Self::Jsonb, Value::Jsonb(text)) => Plaintext::Text(text),
            (Self::Integer, Value::Integer(number))
            | (Self::Timestamptz, Value::Timestamptz(number)) => {
                Plaintext::fixed(&number.to_be_bytes())
            }
            (Self::Date, Value::Date(days)) => Plaintext::fixed(&days.to_be_bytes()),
            (Self::Uuid, Value::Uuid(bytes)) => Plaintext::fixed(&bytes),
            (Self::Boolean, Value::Boolean(value)) => Plaintext::fixed(&[value.into()]),
            _ => return Err(NotOfForm),
        };
        self.decode(plaintext.as_bytes())?;
        Ok(plaintext)
    }

    /// The value that these bytes are; nothing else has them as its plaintext.
    pub fn decode(self, plaintext: &[u8]) -> Result<Value<'_>, NotOfForm> {
        match self {
            Self::Text | Self::Lower | Self::Digits => text(plaintext).map(Value::Text),
            Self::Jsonb => text(plaintext).map(Value::Jsonb),
            Self::Numeric => match text(plaintext)? {
                number if is_numeric(number) => Ok(Value::Numeric(number)),
                _ => Err(NotOfForm),
            },
            Self::Integer => {
                fixed(plaintext).map(|bytes| Value::Integer(i64::from_be_bytes(bytes)))
            }
            Self::Date => match i32::from_be_bytes(fixed(plaintext)?) {
                days @ (i32::MIN | i32::MAX | FIRST_DAY..=LAST_DAY) => Ok(Value::Date(days)),
                _ => Err(NotOfForm),
            },
            Self::Timestamptz => match i64::from_be_bytes(fixed(plaintext)?) {
                time @ (i64::MIN | i64::MAX | FIRST_MOMENT..=LAST_MOMENT) => {
                    Ok(Value::Timestamptz(time))
                }
                _ => Err(NotOfForm),
            },
            Self::Uuid => fixed(plaintext).map(Value::Uuid),
            Self::Boolean => match fixed(plaintext)? {
                [0] => Ok(Value::Boolean(false)),
                [1] => Ok(Value::Boolean(true)),
                _ => Err(NotOfForm),
            },
        }
    }

    /// What of a plaintext is compared: equal values, equal bytes. Not of the form, or of one that is not searchable:
    /// an error.
    pub fn fold(self, plaintext: &[u8]) -> Result<Folded<'_>, NotOfForm> {
        match (self, self.decode(plaintext)?) {
            (Self::Lower, Value::Text(text)) => Ok(Folded::New(folding::lower(text))),
            (Self::Digits, Value::Text(text)) => Ok(Folded::New(folding::digits(text))),
            (Self::Numeric, _) => Ok(Folded::Same(without_trailing_zeros(plaintext))),
            _ if self.is_searchable() => Ok(Folded::Same(plaintext)),
            _ => Err(NotOfForm),
        }
    }
}

/// The first and the last day and moment that Postgres has: 4713-11-24 BC, 5874897-12-31 and 294276-12-31.
const FIRST_DAY: i32 = -2_451_545;
const LAST_DAY: i32 = 2_145_031_948;
const FIRST_MOMENT: i64 = -211_813_488_000_000_000;
const LAST_MOMENT: i64 = 9_223_371_331_199_999_999;

/// The bytes that are sealed, of a value.
pub enum Plaintext<'v> {
    /// Those of a text.
    Text(&'v str),
    /// Those of a type of a fixed size, and how many.
    Fixed(Zeroizing<[u8; 16]>, usize),
}

impl Plaintext<'_> {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Fixed(bytes, length) => bytes.get(..*length).unwrap_or_default(),
        }
    }

    fn fixed(bytes: &[u8]) -> Self {
        let mut out = Zeroizing::new([0; 16]);
        out[..bytes.len()].copy_from_slice(bytes);
        Self::Fixed(out, bytes.len())
    }
}

/// What of a plaintext is compared.
pub enum Folded<'p> {
    /// The plaintext, or its beginning.
    Same(&'p [u8]),
    /// Something else.
    New(Zeroizing<Vec<u8>>),
}

impl Folded<'_> {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Same(bytes) => bytes,
            Self::New(bytes) => bytes,
        }
    }
}

fn text(plaintext: &[u8]) -> Result<&str, NotOfForm> {
    match str::from_utf8(plaintext) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(NotOfForm),
    }
}

fn fixed<const N: usize>(plaintext: &[u8]) -> Result<[u8; N], NotOfForm> {
    plaintext.try_into().map_err(|_| NotOfForm)
}

/// Whether Postgres writes a number so: `-?(0|[1-9][0-9]*)(\.[0-9]+)?` but no zero with a sign; `NaN`, `Infinity`,
/// `-Infinity`.
fn is_numeric(text: &str) -> bool {
    if matches!(text, "NaN" | "Infinity" | "-Infinity") {
        return true;
    }
    let (is_negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let are_digits = |part: &str| !part.is_empty() && part.bytes().all(|it| it.is_ascii_digit());
    let is_zero = !digits.bytes().any(|it| matches!(it, b'1'..=b'9'));
    are_digits(whole)
        && are_digits(fraction)
        && (whole == "0" || !whole.starts_with('0'))
        && !(is_negative && is_zero)
}
