//! How a signing key becomes one of the log: by a statement about it that somebody known vouches for.
//!
//! The first key of a log, and one that follows a crash, is vouched for by the audit key; a successor
//! by its predecessor. Either way the statement is the text of a note, which `audit_signers.proof`
//! holds whole: a signature line of type Ed25519, or a MAC in the place of one.

use base64ct::{Base64, Encoding};
use fieldcrypt_envelope::{AuditKey, KeyId};

use crate::checkpoint::LogId;
use crate::note::{Malformed, NotSigned, Note, NoteSignature, SigningKey, VerifyingKey, key_id};
use crate::time;
use crate::tree::Hash;

/// The first line: no checkpoint begins so, whose second line is a number, nor a [`crate::LogRow`],
/// whose first byte is its version. So no MAC and no signature of one serves as the other.
const TITLE: &str = "pg_fieldcrypt audit signer v1";
/// The name of an audit key in a signature line, before its id.
const AUDIT_KEY_NAME: &str = "pg_fieldcrypt/audit-key/";
/// The signature type "not assigned" of C2SP signed-note, with what it is.
const MAC_TYPE: &[u8] = b"\xffpg_fieldcrypt HMAC-SHA256";

/// That a key signs the checkpoints of a log from a size on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignerStatement {
    /// The log.
    pub log: LogId,
    /// Where the log is: system identifier, database and timeline, as `audit_origins` says them.
    pub place: Place,
    /// The new key.
    pub key: VerifyingKey,
    /// The number of leaves at that time.
    pub size: u64,
    /// Their root.
    pub root: Hash,
    /// When, in microseconds since 1970.
    pub at: i64,
    /// Whether everything that had happened before was sealed.
    pub is_clean: bool,
    /// The key before it; none for the first of all.
    pub previous: Option<VerifyingKey>,
}

/// Where a log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// `pg_control_system().system_identifier`, read as unsigned.
    pub system_identifier: u64,
    /// The database's OID.
    pub database: u32,
    /// The timeline.
    pub timeline: u32,
}

/// Who vouches for a statement, by its note's only signature line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Introduction {
    /// The audit key with this id.
    Mac(KeyId),
    /// The key before it.
    Predecessor,
    /// The new key itself, for want of both: nothing is known of it.
    Itself,
}

impl SignerStatement {
    /// The statement as lines of text.
    pub fn to_text(&self) -> Option<String> {
        let Place { system_identifier, database, timeline } = self.place;
        let previous = self.previous.as_ref().map_or("none".into(), VerifyingKey::to_string);
        Some(format!(
            "{TITLE}\nlog {}\nplace {system_identifier} {database} {timeline}\nkey {}\nsize {}\n\
             root {}\ntime {}\nhandover {}\nprevious {previous}\n",
            self.log,
            self.key,
            self.size,
            Base64::encode_string(&self.root),
            time::to_text(self.at)?,
            if self.is_clean { "clean" } else { "unclean" },
        ))
    }

    /// Reads the text, strictly.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let mut lines = text.split('\n');
        let title = lines.next();
        let mut line = |name: &str| {
            lines
                .next()
                .and_then(|line| line.strip_prefix(name)?.strip_prefix(' '))
                .ok_or(Malformed)
        };
        let log = LogId::of_origin(&format!("pg_fieldcrypt/{}", line("log")?)).ok_or(Malformed)?;
        let place = Place::parse(line("place")?)?;
        let key = VerifyingKey::parse(line("key")?)?;
        let size = line("size")?.parse().map_err(|_| Malformed)?;
        let mut root = [0; 32];
        let hash = Base64::decode(line("root")?, &mut root).map_err(|_| Malformed)?;
        if hash.len() != 32 {
            return Err(Malformed);
        }
        let at = time::parse(line("time")?).ok_or(Malformed)?;
        let is_clean = line("handover")? == "clean";
        let previous = match line("previous")? {
            "none" => None,
            key => Some(VerifyingKey::parse(key)?),
        };
        let read = Self { log, place, key, size, root, at, is_clean, previous };
        // Whatever was not exactly so does not come back.
        let is_exact = title == Some(TITLE) && read.to_text().as_deref() == Some(text);
        if is_exact { Ok(read) } else { Err(Malformed) }
    }

    /// The note in which the audit key vouches for the statement.
    pub fn by_audit_key(&self, id: KeyId, key: &AuditKey) -> Result<String, Malformed> {
        let mut note = Note::unsigned(&self.to_text().ok_or(Malformed)?)?;
        let mac = key.mac(note.text().as_bytes());
        let name = audit_key_name(id);
        let key_id = key_id(&name, MAC_TYPE);
        note.push(NoteSignature { name, key_id, signature: mac.to_vec() });
        Ok(note.to_string())
    }

    /// The note in which the key before it vouches for the statement; or the new key itself, where
    /// there is nobody else.
    pub fn by_signer(&self, key: &SigningKey) -> Result<String, Malformed> {
        let mut note = Note::unsigned(&self.to_text().ok_or(Malformed)?)?;
        note.push(key.sign(note.text()));
        Ok(note.to_string())
    }

    /// Reads a note: the statement, and who claims to vouch for it. Nothing is verified yet.
    pub fn open(note: &Note) -> Result<(Self, Introduction), Malformed> {
        let statement = Self::parse(note.text())?;
        let [line] = note.signatures() else { return Err(Malformed) };
        let by = |key: &VerifyingKey| line.name == key.name() && line.key_id == key.id();
        let introduction = if let Some(id) = line.name.strip_prefix(AUDIT_KEY_NAME) {
            let id = id.parse().ok().and_then(KeyId::new).ok_or(Malformed)?;
            let is_exact = audit_key_name(id) == line.name && line.signature.len() == 32;
            if !is_exact || line.key_id != key_id(&line.name, MAC_TYPE) {
                return Err(Malformed);
            }
            Introduction::Mac(id)
        } else if statement.previous.as_ref().is_some_and(by) {
            Introduction::Predecessor
        } else if by(&statement.key) {
            Introduction::Itself
        } else {
            return Err(Malformed);
        };
        Ok((statement, introduction))
    }

    /// Whether the audit key made the MAC of a note whose introduction is [`Introduction::Mac`].
    pub fn verify_mac(note: &Note, key: &AuditKey) -> Result<(), NotSigned> {
        let [line] = note.signatures() else { return Err(NotSigned::ByThisKey) };
        let mac = line.signature.as_slice().try_into().map_err(|_| NotSigned::Invalid)?;
        if key.is_mac_of(note.text().as_bytes(), mac) { Ok(()) } else { Err(NotSigned::Invalid) }
    }
}

impl Place {
    fn parse(text: &str) -> Result<Self, Malformed> {
        let mut numbers = text.split(' ');
        let mut next = || numbers.next().ok_or(Malformed);
        let place = Self {
            system_identifier: next()?.parse().map_err(|_| Malformed)?,
            database: next()?.parse().map_err(|_| Malformed)?,
            timeline: next()?.parse().map_err(|_| Malformed)?,
        };
        if numbers.next().is_none() { Ok(place) } else { Err(Malformed) }
    }
}

fn audit_key_name(id: KeyId) -> String {
    format!("{AUDIT_KEY_NAME}{id}")
}
