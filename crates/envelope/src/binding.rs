//! What a value of suite 0x02 or 0x03 belongs to: a place, or for a while a session.

use crate::primitives::sha256;

/// The place of a bound value: `salt ‖ SHA-256(salt ‖ context)[..12]` (FIPS 180-4), where the context is the UTF-8 text
/// that [`place`](crate::place) writes for the column's declared name and the row's key.
///
/// The value's tag authenticates these bytes. The hash is not there against forgers, who would need the key, but for
/// who compares: 96 bits, so that of 2^32 rows none is practically mistaken for another. The salt keeps two values of
/// one row from showing that they are; whoever can guess a context can still find its values, as its row does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    salt: [u8; 4],
    hash: [u8; 12],
}

impl Place {
    /// Bytes of it in a header.
    pub const LENGTH: usize = 16;

    /// The place of this context. The salt is random, new for each value that is bound and kept when it is re-encrypted.
    pub fn new(salt: [u8; 4], context: &str) -> Self {
        let mut hash = [0; 12];
        hash.copy_from_slice(&sha256(&[&salt, context.as_bytes()])[..12]);
        Self { salt, hash }
    }

    /// Whether it is the place of this context.
    pub fn is_of(&self, context: &str) -> bool {
        *self == Self::new(self.salt, context)
    }

    /// The place with these bytes.
    pub fn from_bytes(bytes: &[u8; Self::LENGTH]) -> Self {
        let [s0, s1, s2, s3, hash @ ..] = *bytes;
        Self { salt: [s0, s1, s2, s3], hash }
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> [u8; Self::LENGTH] {
        let mut out = [0; Self::LENGTH];
        out[..4].copy_from_slice(&self.salt);
        out[4..].copy_from_slice(&self.hash);
        out
    }
}

/// Who sealed a loose value, and when: `database ‖ process ‖ time`, all big-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// The database, as its cluster numbers it.
    pub database: u32,
    /// The process of the session: the leader's, where several work for it.
    pub process: u32,
    /// Microseconds since 2000-01-01 00:00 UTC.
    pub sealed_at: i64,
}

impl Stamp {
    /// The stamp with these bytes.
    pub fn from_bytes(bytes: &[u8; Place::LENGTH]) -> Self {
        let [d0, d1, d2, d3, p0, p1, p2, p3, time @ ..] = *bytes;
        Self {
            database: u32::from_be_bytes([d0, d1, d2, d3]),
            process: u32::from_be_bytes([p0, p1, p2, p3]),
            sealed_at: i64::from_be_bytes(time),
        }
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> [u8; Place::LENGTH] {
        let mut out = [0; Place::LENGTH];
        out[..4].copy_from_slice(&self.database.to_be_bytes());
        out[4..8].copy_from_slice(&self.process.to_be_bytes());
        out[8..].copy_from_slice(&self.sealed_at.to_be_bytes());
        out
    }
}

/// A session, to ask whether a loose value is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// The database that it is connected to.
    pub database: u32,
    /// Its process; the leader's in a parallel worker.
    pub process: u32,
    /// When that process began to serve it, in microseconds since 2000-01-01 00:00 UTC.
    pub started_at: i64,
}

impl Session {
    /// Whether a loose value was sealed here. Process ids are used again, so an older value is of an older session. There
    /// is no upper limit: a clock that was set back must not make a session's own values foreign to it.
    pub fn sealed(&self, stamp: &Stamp) -> bool {
        (self.database, self.process) == (stamp.database, stamp.process)
            && self.started_at <= stamp.sealed_at
    }
}

/// Where a value is expected to belong by who opens it.
#[derive(Debug, Clone, Copy)]
pub enum Expected<'e> {
    /// In the place of this context.
    Place(&'e str),
    /// To this session, which sealed it: a loose value.
    Session(&'e Session),
    /// Anywhere: what moves values between keys, or has been asked to show one wherever it is from.
    Any,
}
