//! Checkpoints of a log: C2SP tlog-checkpoint.

use std::fmt;

use base64ct::{Base64, Encoding};
use fieldcrypt_envelope::{RandomnessUnavailable, random, sha256};

use crate::note::Malformed;
use crate::time;
use crate::tree::{Frontier, Hash};

/// What the origin of our logs begins with.
const ORIGIN_START: &str = "pg_fieldcrypt/";

/// The name of a log: 16 random bytes, drawn whenever a log begins, or goes on in another place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogId(pub [u8; 16]);

impl LogId {
    /// A new one.
    pub fn generate() -> Result<Self, RandomnessUnavailable> {
        let mut id = [0; 16];
        random(&mut id)?;
        Ok(Self(id))
    }

    /// The origin line of its checkpoints and the name of its keys: `pg_fieldcrypt/` and the id in hex.
    pub fn origin(&self) -> String {
        format!("{ORIGIN_START}{self}")
    }

    /// The log of that origin line.
    pub fn of_origin(origin: &str) -> Option<Self> {
        let mut id = [0; 16];
        let hex = origin.strip_prefix(ORIGIN_START)?;
        base16ct::lower::decode(hex, &mut id).is_ok_and(|read| read.len() == 16).then_some(Self(id))
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base16ct::lower::encode_string(&self.0))
    }
}

/// The size and root of a log at some time: the text of a note, C2SP tlog-checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log.
    pub origin: String,
    /// The number of leaves.
    pub size: u64,
    /// The Merkle tree hash of them, RFC 6962 section 2.1.
    pub root: Hash,
    /// Further lines. Ours: see [`Checkpoint::of`].
    pub extensions: Vec<String>,
}

impl Checkpoint {
    /// A checkpoint of one of our logs, with these extension lines:
    ///
    /// - `time <RFC 3339>`, microseconds, UTC;
    /// - `previous <base64 of SHA-256>` of the text of the checkpoint before it, so that none can be
    ///   taken out, or `previous none` for the first one of a log;
    /// - `final`, if all that had happened was sealed, so that the next key's handover is clean.
    ///
    /// `None` for a time outside of the years 0000 to 9999.
    pub fn of(
        log: &LogId,
        tree: &Frontier,
        microseconds: i64,
        previous: Option<&Hash>,
        is_final: bool,
    ) -> Option<Self> {
        let previous = previous.map_or("none".into(), |hash| Base64::encode_string(hash));
        let mut extensions =
            vec![format!("time {}", time::to_text(microseconds)?), format!("previous {previous}")];
        if is_final {
            extensions.push("final".into());
        }
        Some(Self { origin: log.origin(), size: tree.size(), root: tree.root(), extensions })
    }

    /// The text, to be signed as a note.
    pub fn to_text(&self) -> String {
        let mut text =
            format!("{}\n{}\n{}\n", self.origin, self.size, Base64::encode_string(&self.root));
        for line in &self.extensions {
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    /// Reads the text of a note, strictly.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let mut lines = text.strip_suffix('\n').ok_or(Malformed)?.split('\n');
        let mut line = || lines.next().filter(|line| !line.is_empty()).ok_or(Malformed);
        let (origin, size, root) = (line()?, line()?, line()?);
        let mut hash = [0; 32];
        let is_root = Base64::decode(root, &mut hash).is_ok_and(|read| read.len() == 32);
        let read = Self {
            origin: origin.to_owned(),
            size: size.parse().map_err(|_| Malformed)?,
            root: hash,
            extensions: lines.map(str::to_owned).collect(),
        };
        let is_whole = is_root && read.extensions.iter().all(|line| !line.is_empty());
        // A size with a sign or leading zeroes does not come back.
        if is_whole && read.to_text() == text { Ok(read) } else { Err(Malformed) }
    }

    /// SHA-256 of the text: what the next checkpoint's line `previous` says.
    pub fn hash(&self) -> Hash {
        sha256(&[self.to_text().as_bytes()])
    }

    /// The log, if it is one of ours.
    pub fn log_id(&self) -> Option<LogId> {
        LogId::of_origin(&self.origin)
    }

    /// What line `time` says.
    pub fn time(&self) -> Option<i64> {
        time::parse(self.extension("time ")?)
    }

    /// What line `previous` says: `Some(None)` for the first checkpoint of a log.
    pub fn previous(&self) -> Option<Option<Hash>> {
        let line = self.extension("previous ")?;
        if line == "none" {
            return Some(None);
        }
        let mut hash = [0; 32];
        Base64::decode(line, &mut hash).is_ok_and(|read| read.len() == 32).then_some(Some(hash))
    }

    /// Whether it carries the line `final`.
    pub fn is_final(&self) -> bool {
        self.extensions.iter().any(|line| line == "final")
    }

    /// The only line that begins so.
    fn extension(&self, start: &str) -> Option<&str> {
        let mut found = self.extensions.iter().filter_map(|line| line.strip_prefix(start));
        found.next().filter(|_| found.next().is_none())
    }
}
