//! Opens values, and counts those that do not open.

use std::collections::HashMap;
use std::fmt::Write;

use fieldcrypt_envelope::bound::OpenError;
use fieldcrypt_envelope::forms::{Form, Value};
use fieldcrypt_envelope::{
    AnyCiphertext, BoundCiphertext, BoundKey, Ciphertext, Context, Expected, KeyId, Kind,
    MAX_CONTEXT_BYTES, Malformed, MessageKey, Part, Purpose, SuiteKey, from_any_text, place,
};
use zeroize::Zeroizing;

use crate::Escape;
use crate::keys::{KeyProblem, Keys};

/// Opens the values of one run.
pub struct Opener<'k> {
    keys: &'k Keys,
    suite_keys: HashMap<KeyId, Result<SuiteKey, KeyProblem>>,
    bound_keys: HashMap<(KeyId, Kind), Result<BoundKey, KeyProblem>>,
    /// Values that were written together share the start of their nonce, and with it this key.
    last: Option<(KeyId, [u8; 12], MessageKey)>,
    opened: u64,
    /// Of the opened ones: bound to a place that nobody named.
    unchecked: u64,
    /// Of the opened ones: not bound to a place yet.
    loose: u64,
    left: [u64; Left::NAMES.len()],
}

/// Why a value was left as it is.
#[derive(Clone, Copy)]
enum Left {
    Malformed,
    Unknown,
    NotAuthentic,
    Misplaced,
    NotOfForm,
    NoContext,
    UnknownKey,
    DestroyedKey,
    NoMasterKey,
    KeyDoesNotOpen,
}

impl Left {
    const NAMES: [&'static str; 10] = [
        "malformed",
        "of a later version (a suite or form that this program does not know)",
        "not authentic or of another context",
        "bound to another place, or to none yet",
        "authentic, but not of the form that they name",
        "of a context that is not known",
        "of a key that the export does not hold",
        "of a destroyed key",
        "of a key whose master key is not given",
        "of a key that does not open",
    ];
}

impl From<Malformed> for Left {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Suite(1..) | Malformed::Form(1..) => Self::Unknown,
            _ => Self::Malformed,
        }
    }
}

impl From<KeyProblem> for Left {
    fn from(problem: KeyProblem) -> Self {
        match problem {
            KeyProblem::Unknown => Self::UnknownKey,
            KeyProblem::Destroyed => Self::DestroyedKey,
            KeyProblem::NoMasterKey => Self::NoMasterKey,
            KeyProblem::UnknownAlgorithm | KeyProblem::NotAuthentic => Self::KeyDoesNotOpen,
        }
    }
}

impl<'k> Opener<'k> {
    pub fn new(keys: &'k Keys) -> Self {
        Self {
            keys,
            suite_keys: HashMap::new(),
            bound_keys: HashMap::new(),
            last: None,
            opened: 0,
            unchecked: 0,
            loose: 0,
            left: [0; Left::NAMES.len()],
        }
    }

    /// What a value in its text form holds; `None`, and counted, if it does not open. The context is '' if it has none,
    /// and nothing if it is not known: values that carry their place open all the same, unchecked.
    pub fn open(&mut self, token: &[u8], context: Option<&str>) -> Option<Zeroizing<Vec<u8>>> {
        match self.attempt(token, context) {
            Ok(plaintext) => {
                self.opened += 1;
                Some(plaintext)
            }
            Err(left) => {
                self.left[left as usize] += 1;
                None
            }
        }
    }

    fn attempt(&mut self, token: &[u8], context: Option<&str>) -> Result<Zeroizing<Vec<u8>>, Left> {
        let bytes = from_any_text(token)?;
        match AnyCiphertext::parse(&bytes)? {
            AnyCiphertext::Field(value) => self.open_field(&value, context.ok_or(Left::NoContext)?),
            AnyCiphertext::Bound(value) => self.open_bound(&value, context.unwrap_or_default()),
        }
    }

    fn open_field(
        &mut self,
        value: &Ciphertext<'_>,
        context: &str,
    ) -> Result<Zeroizing<Vec<u8>>, Left> {
        let parts = [context];
        let context = if context.is_empty() {
            Context::NONE
        } else {
            Context::new(&parts).ok_or(Left::NotAuthentic)?
        };
        let mut plaintext = Zeroizing::new(value.body().to_vec());
        let key = self.message_key(value)?;
        value.open_in_place(key, &context, &mut plaintext).map_err(|_| Left::NotAuthentic)?;
        Ok(plaintext)
    }

    fn open_bound(
        &mut self,
        value: &BoundCiphertext<'_>,
        context: &str,
    ) -> Result<Zeroizing<Vec<u8>>, Left> {
        let header = value.header();
        let (key_id, kind) = (header.key_id, header.kind());
        let keys = self.keys;
        let key = self
            .bound_keys
            .entry((key_id, kind))
            .or_insert_with(|| {
                let key = keys.open_by_id(key_id, kind.purpose())?;
                key.bound_key(key_id, kind).map_err(|_| KeyProblem::UnknownAlgorithm)
            })
            .as_ref()
            .map_err(|problem| Left::from(*problem))?;
        let key = key.message_key(kind, key_id, &header.nonce).map_err(|_| Left::KeyDoesNotOpen)?;
        let expected = if context.is_empty() { Expected::Any } else { Expected::Place(context) };
        let mut plaintext = Zeroizing::new(value.body().to_vec());
        value.open_in_place(&key, expected, &mut plaintext).map_err(|error| match error {
            OpenError::WrongKey => Left::KeyDoesNotOpen,
            OpenError::Misplaced => Left::Misplaced,
            OpenError::NotAuthentic => Left::NotAuthentic,
        })?;
        let text = text_of(header.form, &plaintext)?;
        if kind == Kind::Loose {
            self.loose += 1;
        } else if context.is_empty() {
            self.unchecked += 1;
        }
        Ok(text)
    }

    fn message_key(&mut self, value: &Ciphertext<'_>) -> Result<&MessageKey, Left> {
        let key_id = value.key_id();
        let mut prefix = [0; 12];
        prefix.copy_from_slice(&value.nonce().as_bytes()[..12]);
        let is_last =
            self.last.as_ref().is_some_and(|(id, known, _)| *id == key_id && *known == prefix);
        if !is_last {
            let keys = self.keys;
            let suite_key = self
                .suite_keys
                .entry(key_id)
                .or_insert_with(|| {
                    keys.open_by_id(key_id, Purpose::Field).map(|key| key.suite_key(key_id))
                })
                .as_ref()
                .map_err(|problem| Left::from(*problem))?;
            self.last = Some((key_id, prefix, suite_key.message_key(value.nonce())));
        }
        self.last.as_ref().map(|(_, _, key)| key).ok_or(Left::KeyDoesNotOpen)
    }

    pub fn all_opened(&self) -> bool {
        self.left.iter().all(|count| *count == 0)
    }

    /// How many opened, and why the others did not.
    pub fn summary(&self) -> String {
        let mut text = format!("{} values opened", self.opened);
        if self.unchecked > 0 {
            let _ = write!(text, ", {} of them without a check of their place", self.unchecked);
        }
        if self.loose > 0 {
            let _ = write!(text, ", {} of them loose (in no row yet)", self.loose);
        }
        let left: u64 = self.left.iter().sum();
        if left > 0 {
            let _ = write!(text, ", {left} left as they are");
            let mut separator = ": ";
            for (count, name) in self.left.iter().zip(Left::NAMES).filter(|(count, _)| **count > 0)
            {
                let _ = write!(text, "{separator}{count} {name}");
                separator = ", ";
            }
        }
        text
    }
}

/// A plaintext of a form as text: as it is, or as `fieldcrypt.context` writes it.
fn text_of(form: Form, plaintext: &[u8]) -> Result<Zeroizing<Vec<u8>>, Left> {
    let text = match form.decode(plaintext).map_err(|_| Left::NotOfForm)? {
        Value::Text(text) | Value::Numeric(text) | Value::Jsonb(text) => {
            Some(text.as_bytes().to_vec())
        }
        Value::Integer(number) => place(&[Part::Integer(number)], MAX_CONTEXT_BYTES),
        Value::Date(days) => place(&[Part::Date(days)], MAX_CONTEXT_BYTES),
        Value::Timestamptz(time) => place(&[Part::Timestamptz(time)], MAX_CONTEXT_BYTES),
        Value::Uuid(bytes) => place(&[Part::Uuid(&bytes)], MAX_CONTEXT_BYTES),
        Value::Boolean(value) => place(&[Part::Boolean(value)], MAX_CONTEXT_BYTES),
    };
    text.map(Zeroizing::new).ok_or(Left::NotOfForm)
}

/// An opened value as text. Bytes that are no text are shown as Postgres shows bytea, `\x` and hex.
pub fn escaped(plaintext: &[u8], escape: Escape) -> Zeroizing<Vec<u8>> {
    let text = as_text(plaintext);
    if escape == Escape::None {
        return text;
    }
    // Twice the room: a buffer that grew would leave copies of the plaintext behind.
    let mut out = Zeroizing::new(Vec::with_capacity(2 * text.len()));
    for byte in text.iter().copied() {
        let escaped = match (escape, byte) {
            (Escape::Sql, b'\'') => Some(b'\''),
            (Escape::Copy, 8) => Some(b'b'),
            (Escape::Copy, b'\t') => Some(b't'),
            (Escape::Copy, b'\n') => Some(b'n'),
            (Escape::Copy, 11) => Some(b'v'),
            (Escape::Copy, 12) => Some(b'f'),
            (Escape::Copy, b'\r') => Some(b'r'),
            (Escape::Copy, b'\\') => Some(b'\\'),
            _ => None,
        };
        match (escape, escaped) {
            (Escape::Sql, Some(quote)) => out.extend([quote, quote]),
            (_, Some(letter)) => out.extend([b'\\', letter]),
            (_, None) => out.push(byte),
        }
    }
    out
}

fn as_text(plaintext: &[u8]) -> Zeroizing<Vec<u8>> {
    if str::from_utf8(plaintext).is_ok() && !plaintext.contains(&0) {
        return Zeroizing::new(plaintext.to_vec());
    }
    let mut out = Zeroizing::new(Vec::with_capacity(2 + 2 * plaintext.len()));
    out.extend(b"\\x");
    for byte in plaintext {
        out.extend([byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
    }
    out
}
