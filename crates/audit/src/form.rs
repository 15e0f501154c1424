//! How numbers, bytes and times stand in JSON: as texts, which every reader keeps exactly.

use std::fmt::Display;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::time as rfc3339;

/// What has such a form. With it, `#[serde(with = "form")]` serves for a column of that type.
pub trait HasForm: Clone {
    /// The form.
    type Form: Serialize + for<'de> Deserialize<'de>;

    /// In this form.
    fn form(&self) -> Self::Form;

    /// Of this form.
    fn of(form: Self::Form) -> Self;
}

/// Writes the form.
pub fn serialize<T: HasForm, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    value.form().serialize(serializer)
}

/// Reads the form.
pub fn deserialize<'de, T: HasForm, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    T::Form::deserialize(deserializer).map(T::of)
}

/// The same for a time, which is a number elsewhere.
pub mod time {
    use super::{Deserialize, Deserializer, Serialize, Serializer, Time};

    /// Writes the form.
    pub fn serialize<S: Serializer>(at: &i64, serializer: S) -> Result<S::Ok, S::Error> {
        Time(*at).serialize(serializer)
    }

    /// Reads the form.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
        Time::deserialize(deserializer).map(|time| time.0)
    }
}

macro_rules! forms {
    ($($type:ty => $form:ident $(<$of:ty>)?;)*) => {$(
        impl HasForm for $type {
            type Form = $form $(<$of>)?;

            fn form(&self) -> Self::Form {
                $form(self.clone())
            }

            fn of(form: Self::Form) -> Self {
                form.0
            }
        }
    )*};
}

forms! {
    i64 => Number<i64>;
    u64 => Number<u64>;
    Vec<u8> => Hex;
}

impl HasForm for Vec<i64> {
    type Form = Vec<Number>;

    fn form(&self) -> Vec<Number> {
        self.iter().copied().map(Number).collect()
    }

    fn of(form: Vec<Number>) -> Self {
        form.into_iter().map(|number| number.0).collect()
    }
}

impl<T: HasForm> HasForm for Option<T> {
    type Form = Option<T::Form>;

    fn form(&self) -> Self::Form {
        self.as_ref().map(T::form)
    }

    fn of(form: Self::Form) -> Self {
        form.map(T::of)
    }
}

/// A 64-bit integer, as a text: not every reader of JSON keeps one exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Number<T = i64>(pub T);

impl<T: Display> Serialize for Number<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de, T: Display + FromStr> Deserialize<'de> for Number<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer, |text| {
            text.parse().ok().filter(|number: &T| number.to_string() == text)
        })
        .map(Self)
    }
}

/// Bytes, in hex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hex(pub Vec<u8>);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&base16ct::lower::encode_string(&self.0))
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer, |text| base16ct::lower::decode_vec(text).ok()).map(Self)
    }
}

/// A time in RFC 3339, or, where that has no text for it, its microseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub i64);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match rfc3339::to_text(self.0) {
            Some(text) => serializer.serialize_str(&text),
            None => serializer.collect_str(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer, |text| {
            rfc3339::parse(text).or_else(|| {
                let number: i64 = text.parse().ok()?;
                (number.to_string() == text && rfc3339::to_text(number).is_none()).then_some(number)
            })
        })
        .map(Self)
    }
}

fn parsed<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, D::Error> {
    let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
    parse(&text).ok_or_else(|| serde::de::Error::custom("not of the expected form"))
}
