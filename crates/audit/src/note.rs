//! Signed notes and their keys: C2SP signed-note, with Ed25519 signatures (type 0x01) only.

use std::fmt;

use base64ct::{Base64, Encoding};
use fieldcrypt_envelope::{RandomnessUnavailable, sha256};

use crate::primitives::{Ed25519PrivateKey, Ed25519PublicKey};

/// The signature type of Ed25519, C2SP signed-note.
const ED25519: u8 = 0x01;
const SIGNATURE_START: &str = "\u{2014} ";
/// More signatures than any log has witnesses.
const MAX_SIGNATURES: usize = 100;
/// Above any note that is read here.
const MAX_LENGTH: usize = 64 * 1024;

/// A text with its signatures, parsed but not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<NoteSignature>,
}

/// A signature line of a note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoteSignature {
    /// The name of the key.
    pub name: String,
    /// The id of the key.
    pub key_id: u32,
    /// What the key made of the text.
    pub signature: Vec<u8>,
}

impl Note {
    /// Reads a note, strictly: text, an empty line, one or more signature lines, and nothing else.
    pub fn parse(note: &str) -> Result<Self, Malformed> {
        if note.len() > MAX_LENGTH || has_control_characters(note) {
            return Err(Malformed);
        }
        let (text, lines) = note.rsplit_once("\n\n").ok_or(Malformed)?;
        let lines = lines.strip_suffix('\n').ok_or(Malformed)?;
        if text.is_empty() || lines.split('\n').count() > MAX_SIGNATURES {
            return Err(Malformed);
        }
        let signatures = lines.split('\n').map(NoteSignature::parse).collect::<Result<_, _>>()?;
        Ok(Self { text: format!("{text}\n"), signatures })
    }

    /// A text without any signature yet.
    pub fn unsigned(text: &str) -> Result<Self, Malformed> {
        let is_text = text.ends_with('\n') && text.len() > 1 && !has_control_characters(text);
        if !is_text || text.len() > MAX_LENGTH / 2 {
            return Err(Malformed);
        }
        Ok(Self { text: text.to_owned(), signatures: Vec::new() })
    }

    /// The text, with its last newline.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The signatures, verified or not.
    pub fn signatures(&self) -> &[NoteSignature] {
        &self.signatures
    }

    pub(crate) fn push(&mut self, signature: NoteSignature) {
        self.signatures.push(signature);
    }

    /// Whether the key signed the text. A signature in the key's name and id that does not verify
    /// spoils the note, even beside one that does.
    pub fn verify(&self, key: &VerifyingKey) -> Result<(), NotSigned> {
        let mut by_key = self
            .signatures
            .iter()
            .filter(|one| one.name == key.name && one.key_id == key.id)
            .peekable();
        if by_key.peek().is_none() {
            return Err(NotSigned::ByThisKey);
        }
        if by_key.all(|one| key.key.verify(self.text.as_bytes(), &one.signature)) {
            Ok(())
        } else {
            Err(NotSigned::Invalid)
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        for NoteSignature { name, key_id, signature } in &self.signatures {
            let bytes = [key_id.to_be_bytes().as_slice(), signature].concat();
            writeln!(f, "{SIGNATURE_START}{name} {}", Base64::encode_string(&bytes))?;
        }
        Ok(())
    }
}

impl NoteSignature {
    fn parse(line: &str) -> Result<Self, Malformed> {
        let line = line.strip_prefix(SIGNATURE_START).ok_or(Malformed)?;
        let (name, encoded) = line.split_once(' ').ok_or(Malformed)?;
        let bytes = Base64::decode_vec(encoded).map_err(|_| Malformed)?;
        let (key_id, signature) = bytes.split_first_chunk::<4>().ok_or(Malformed)?;
        if !is_name(name) || signature.is_empty() {
            return Err(Malformed);
        }
        Ok(Self {
            name: name.to_owned(),
            key_id: u32::from_be_bytes(*key_id),
            signature: signature.to_vec(),
        })
    }
}

/// The text as a note that carries the signature of `key`.
pub fn sign_note(text: &str, key: &SigningKey) -> Result<String, Malformed> {
    let mut note = Note::unsigned(text)?;
    note.push(key.sign(text));
    Ok(note.to_string())
}

/// An Ed25519 key that signs notes, with its name. Zeroized on drop.
pub struct SigningKey {
    key: Ed25519PrivateKey,
    public: VerifyingKey,
}

impl SigningKey {
    /// A new one, from the operating system's random source.
    pub fn generate(name: &str) -> Result<Self, KeyError> {
        let key = Ed25519PrivateKey::generate().map_err(KeyError::Randomness)?;
        Self::of(name, key)
    }

    /// The key of this seed (RFC 8032 section 5.1.5), for tests and for who keeps the seed.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, KeyError> {
        Self::of(name, Ed25519PrivateKey::from_seed(seed))
    }

    fn of(name: &str, key: Ed25519PrivateKey) -> Result<Self, KeyError> {
        let public = VerifyingKey::from_bytes(name, &key.public_key()).ok_or(KeyError::Name)?;
        Ok(Self { key, public })
    }

    /// The public half.
    pub fn verifying_key(&self) -> &VerifyingKey {
        &self.public
    }

    pub(crate) fn sign(&self, text: &str) -> NoteSignature {
        NoteSignature {
            name: self.public.name.clone(),
            key_id: self.public.id,
            signature: self.key.sign(text.as_bytes()).to_vec(),
        }
    }
}

/// A public key with its name. Its text form is C2SP signed-note's *verifier key*:
/// `name+id in hex+base64(0x01 ‖ public key)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyingKey {
    name: String,
    id: u32,
    key: Ed25519PublicKey,
}

impl VerifyingKey {
    /// `None` for a name that no key may have, or bytes that are no public key.
    pub fn from_bytes(name: &str, key: &[u8; 32]) -> Option<Self> {
        let key = is_name(name).then(|| Ed25519PublicKey::from_bytes(key))??;
        let id = key_id(name, &[&[ED25519], key.as_bytes().as_slice()].concat());
        Some(Self { name: name.to_owned(), id, key })
    }

    /// Reads the text form, strictly.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        // Base64 has a `+`, too.
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Malformed);
        };
        let key = Base64::decode_vec(key).map_err(|_| Malformed)?;
        let Some((&[ED25519], key)) = key.split_first_chunk() else { return Err(Malformed) };
        let key = key.try_into().map_err(|_| Malformed)?;
        let read = Self::from_bytes(name, key).ok_or(Malformed)?;
        if id == format!("{:08x}", read.id) { Ok(read) } else { Err(Malformed) }
    }

    /// Its name: for a key of ours, the origin of the log.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its id: short, an abbreviation and nothing more.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The 32 bytes of RFC 8032.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }
}

impl fmt::Display for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&[ED25519], self.key.as_bytes().as_slice()].concat();
        write!(f, "{}+{:08x}+{}", self.name, self.id, Base64::encode_string(&bytes))
    }
}

/// `SHA-256(name ‖ 0x0A ‖ signature type ‖ public key)[..4]`, C2SP signed-note.
pub(crate) fn key_id(name: &str, type_and_key: &[u8]) -> u32 {
    let hash = sha256(&[name.as_bytes(), b"\n", type_and_key]);
    u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '+')
}

/// ASCII control characters but for the newline.
fn has_control_characters(text: &str) -> bool {
    text.bytes().any(|byte| byte < 0x20 && byte != b'\n')
}

/// A text that is no note, no key, no checkpoint, or whatever it was taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("malformed")
    }
}

/// Why a note does not count as signed by a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotSigned {
    /// It carries no signature of that name and id.
    ByThisKey,
    /// It carries one that is not the key's.
    Invalid,
}

impl fmt::Display for NotSigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ByThisKey => "not signed by this key",
            Self::Invalid => "the signature is not valid",
        })
    }
}

/// Why no signing key was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyError {
    /// The operating system gave no random bytes.
    Randomness(RandomnessUnavailable),
    /// No key may have that name.
    Name,
}
