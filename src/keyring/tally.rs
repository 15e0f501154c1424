//! What is counted where a key is used: plain numbers, added up without a look-up and without a clock.

use std::time::Instant;

/// One use in this many is timed. A prime, so that a query that uses keys in a rhythm does not have
/// always the same of them timed.
pub const TIMED_ONE_IN: u32 = 61;

/// What was done with a key, or with the keys of a tenant, since it was last told.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// Times that the key was looked for; the others found it in the cache.
    pub look_ups: u64,
    /// Times that it was not in the cache, or that its row had to be read again.
    pub misses: u64,
    /// Values encrypted.
    pub encrypted: u64,
    /// Bytes of their plaintexts.
    pub encrypted_bytes: u64,
    /// Nanoseconds that took, from a sample.
    pub encrypt_time: u64,
    /// Values decrypted.
    pub decrypted: u64,
    /// Bytes of their plaintexts.
    pub decrypted_bytes: u64,
    /// Nanoseconds that took, from a sample.
    pub decrypt_time: u64,
    /// Values decrypted whose statement is to be recorded.
    pub recorded: u64,
    /// Values that came to this key by re-encryption.
    pub reencrypted: u64,
    /// Nanoseconds of finding, unwrapping or making keys that were not in the cache.
    pub load_time: u64,
}

impl Tally {
    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        self.look_ups += other.look_ups;
        self.misses += other.misses;
        self.encrypted += other.encrypted;
        self.encrypted_bytes += other.encrypted_bytes;
        self.encrypt_time += other.encrypt_time;
        self.decrypted += other.decrypted;
        self.decrypted_bytes += other.decrypted_bytes;
        self.decrypt_time += other.decrypt_time;
        self.recorded += other.recorded;
        self.reencrypted += other.reencrypted;
        self.load_time += other.load_time;
    }
}

/// Times one use in [`TIMED_ONE_IN`].
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Option<Instant>);

impl Stopwatch {
    /// Whose turn is the first, differently for each process: the first use of all sessions, which is
    /// slower, must not stand for the others.
    pub fn first(process: u32) -> u32 {
        process % TIMED_ONE_IN
    }

    /// Starts, if it is this one's turn.
    #[inline]
    pub fn start(until_next: &mut u32) -> Self {
        if *until_next > 0 {
            *until_next -= 1;
            return Self(None);
        }
        *until_next = TIMED_ONE_IN - 1;
        Self(Some(Instant::now()))
    }

    /// Nanoseconds that this use and those that were not timed took.
    #[inline]
    pub fn nanoseconds(self) -> u64 {
        match self.0 {
            None => 0,
            Some(began) => nanoseconds_since(began) * u64::from(TIMED_ONE_IN),
        }
    }
}

/// Nanoseconds since then.
pub fn nanoseconds_since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX / 1024)
}
