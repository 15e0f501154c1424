//! Opens values, and counts those that do not open.

use std::collections::HashMap;
use std::fmt::Write;

use fieldcrypt_envelope::ciphertext::from_text;
use fieldcrypt_envelope::{Ciphertext, Context, KeyId, MessageKey, SuiteKey};
use zeroize::Zeroizing;

use crate::Escape;
use crate::keys::{KeyProblem, Keys};

/// Opens the values of one run.
pub struct Opener<'k> {
    keys: &'k Keys,
    suite_keys: HashMap<KeyId, Result<SuiteKey, KeyProblem>>,
    /// Values that were written together share the start of their nonce, and with it this key.
    last: Option<(KeyId, [u8; 12], MessageKey)>,
    opened: u64,
    left: [u64; Left::NAMES.len()],
}

/// Why a value was left as it is.
#[derive(Clone, Copy)]
enum Left {
    Malformed,
    NotAuthentic,
    NoContext,
    UnknownKey,
    DestroyedKey,
    NoMasterKey,
    KeyDoesNotOpen,
}

impl Left {
    const NAMES: [&'static str; 7] = [
        "malformed",
        "not authentic or of another context",
        "of a context that is not known",
        "of a key that the export does not hold",
        "of a destroyed key",
        "of a key whose master key is not given",
        "of a key that does not open",
    ];
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
            last: None,
            opened: 0,
            left: [0; Left::NAMES.len()],
        }
    }

    /// What a value in its text form holds; `None`, and counted, if it does not open.
    pub fn open(&mut self, token: &[u8], context: &str) -> Option<Zeroizing<Vec<u8>>> {
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

    /// Counts a value that is left, since it is not known what it is bound to.
    pub fn leave(&mut self) {
        self.left[Left::NoContext as usize] += 1;
    }

    fn attempt(&mut self, token: &[u8], context: &str) -> Result<Zeroizing<Vec<u8>>, Left> {
        let bytes = from_text(token).map_err(|_| Left::Malformed)?;
        let value = Ciphertext::parse(&bytes).map_err(|_| Left::Malformed)?;
        let parts = [context];
        let context = if context.is_empty() {
            Context::NONE
        } else {
            Context::new(&parts).ok_or(Left::NotAuthentic)?
        };
        let mut plaintext = Zeroizing::new(value.body().to_vec());
        let key = self.message_key(&value)?;
        value.open_in_place(key, &context, &mut plaintext).map_err(|_| Left::NotAuthentic)?;
        Ok(plaintext)
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
                .or_insert_with(|| keys.open_by_id(key_id).map(|key| key.suite_key(key_id)))
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
