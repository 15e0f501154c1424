//! The statistics in shared memory: one entry a database and tenant, as many as were asked for, and one for
//! the rest of each database.
//!
//! Entries lie in a dense array, found by a hash table of their numbers. Adding to an entry that exists takes
//! the lock with others; making and removing entries takes it alone.

use std::cell::Cell;
use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::shared_memory::{self, Region};
use super::{clock, session};

const NAME: &std::ffi::CStr = c"pg_fieldcrypt statistics";
/// Entries beside those of tenants: one for the rest of each database.
const RESTS: usize = 256;
/// Bytes of a name that an entry has room for; a longer one counts to the rest.
pub const MAX_NAME_BYTES: usize = 1024;
/// The name length of an entry for the rest.
const NO_NAME: u32 = u32::MAX;

/// Names the figures once: they lie in an array where several processes add to them.
macro_rules! counters {
    ($($(#[$what:meta])* $figure:ident,)*) => {
        /// What is counted of a tenant.
        #[derive(Debug, Default, Clone, Copy)]
        pub struct Counters {
            $($(#[$what])* pub $figure: u64,)*
        }

        const FIGURES: usize = [$(stringify!($figure)),*].len();

        impl Counters {
            fn figures(&self) -> [u64; FIGURES] {
                [$(self.$figure),*]
            }

            fn from_figures([$($figure),*]: [u64; FIGURES]) -> Self {
                Self { $($figure),* }
            }
        }
    };
}

counters! {
    /// Statements that encrypted.
    encrypt_statements,
    /// Values encrypted.
    encrypt_values,
    /// Bytes of their plaintexts.
    encrypt_bytes,
    /// Nanoseconds.
    encrypt_time,
    /// Statements that decrypted.
    decrypt_statements,
    /// Values decrypted.
    decrypt_values,
    /// Bytes of their plaintexts.
    decrypt_bytes,
    /// Nanoseconds.
    decrypt_time,
    /// Values re-encrypted.
    reencrypt_values,
    /// Decryptions that failed.
    failures,
    /// Look-ups of keys that the cache answered.
    cache_hits,
    /// Look-ups that read the table of keys.
    cache_misses,
    /// Nanoseconds that those took.
    load_time,
    /// Keys made.
    keys_made,
}

/// An entry as it is shown.
pub struct Shown {
    /// The tenant in the database's encoding; `None` for the rest.
    pub tenant: Option<Vec<u8>>,
    /// Its figures.
    pub counters: Counters,
    /// Since when they are counted, in Postgres's time.
    pub since: i64,
}

#[repr(C)]
struct Header {
    tenants_max: AtomicU32,
    tenants: AtomicU32,
    used: AtomicU32,
    seed: AtomicU64,
}

#[repr(C)]
struct Entry {
    database: u32,
    name_length: u32,
    since: i64,
    figures: [AtomicU64; FIGURES],
    name: [u8; MAX_NAME_BYTES],
}

thread_local! {
    static KNOWN: Cell<Option<Memory>> = const { Cell::new(None) };
}

/// The region and its parts.
#[derive(Clone, Copy)]
struct Memory {
    region: Region,
    header: *const Header,
    /// Numbers of entries from 1 on, 0 is none; a power of two of them.
    places: *const AtomicU32,
    places_count: usize,
    entries: *mut Entry,
    entries_max: usize,
}

/// Asks for memory for this many tenants.
pub fn init(tenants: usize) {
    TENANTS.store(u32::try_from(tenants).unwrap_or(0), Ordering::Relaxed);
    shared_memory::register(NAME, bytes(tenants), 1);
}

/// As the postmaster was told: its children inherit it.
static TENANTS: AtomicU32 = AtomicU32::new(0);

/// Adds to a tenant's figures in this database, or without a tenant to those of the rest. Reads no catalog
/// and raises nothing.
pub fn add(tenant: Option<&[u8]>, counters: &Counters) {
    let Some(memory) = memory() else { return };
    let database = session::database();
    let tenant = tenant.filter(|name| name.len() <= MAX_NAME_BYTES);
    let is_added = memory.region.locked(0, false, || {
        memory.find(database, tenant).map(|entry| entry.add(counters)).is_some()
    });
    if !is_added {
        let now = clock::now();
        memory.region.locked(0, true, || {
            let entry = memory
                .find(database, tenant)
                .or_else(|| memory.make(database, tenant, now))
                .or_else(|| memory.find(database, None))
                .or_else(|| memory.make(database, None, now));
            if let Some(entry) = entry {
                entry.add(counters);
            }
        });
    }
}

/// The entries of this database.
pub fn read() -> Vec<Shown> {
    let Some(memory) = memory() else { return Vec::new() };
    let database = session::database();
    // Memory is got before the lock is taken.
    let mut shown = Vec::with_capacity(memory.region.locked(0, false, || memory.used()) + 64);
    memory.region.locked(0, false, || {
        for number in 0..memory.used() {
            let entry = memory.entry(number);
            if entry.database == database && shown.len() < shown.capacity() {
                shown.push(Shown {
                    tenant: entry.tenant().map(<[u8]>::to_vec),
                    counters: entry.counters(),
                    since: entry.since,
                });
            }
        }
    });
    shown
}

/// Removes the entries of this database.
pub fn reset() -> bool {
    forget(session::database());
    memory().is_some()
}

/// Removes the entries of a database.
pub fn forget(database: u32) {
    if let Some(memory) = memory() {
        memory.region.locked(0, true, || memory.remove(database));
    }
}

impl Entry {
    fn tenant(&self) -> Option<&[u8]> {
        if self.name_length == NO_NAME {
            return None;
        }
        self.name.get(..self.name_length as usize)
    }

    fn add(&self, counters: &Counters) {
        for (figure, more) in self.figures.iter().zip(counters.figures()) {
            if more > 0 {
                figure.fetch_add(more, Ordering::Relaxed);
            }
        }
    }

    fn counters(&self) -> Counters {
        Counters::from_figures(std::array::from_fn(|at| self.figures[at].load(Ordering::Relaxed)))
    }
}

fn places_for(entries: usize) -> usize {
    (2 * entries).next_power_of_two()
}

fn bytes(tenants: usize) -> usize {
    let entries = tenants + RESTS;
    entries_offset(entries) + entries * size_of::<Entry>()
}

fn entries_offset(entries: usize) -> usize {
    (size_of::<Header>() + places_for(entries) * size_of::<AtomicU32>())
        .next_multiple_of(align_of::<Entry>())
}

fn memory() -> Option<Memory> {
    if let Some(known) = KNOWN.get() {
        return Some(known);
    }
    let region = shared_memory::region(NAME)?;
    let tenants = TENANTS.load(Ordering::Relaxed);
    let entries_max = tenants as usize + RESTS;
    // SAFETY: the region has the length that `bytes` gave for the same number of tenants, begins on a cache
    // line, and holds zero bytes at first, which are a valid state of every part.
    let memory = unsafe {
        Memory {
            region,
            header: region.memory.cast(),
            places: region.memory.add(size_of::<Header>()).cast(),
            places_count: places_for(entries_max),
            entries: region.memory.add(entries_offset(entries_max)).cast(),
            entries_max,
        }
    };
    KNOWN.set(Some(memory));
    Some(memory)
}

/// All of it under the region's lock.
impl Memory {
    fn header(&self) -> &Header {
        // SAFETY: see `memory`.
        unsafe { &*self.header }
    }

    fn place(&self, at: usize) -> &AtomicU32 {
        // SAFETY: see `memory`; the mask keeps it inside.
        unsafe { &*self.places.add(at & (self.places_count - 1)) }
    }

    fn used(&self) -> usize {
        (self.header().used.load(Ordering::Relaxed) as usize).min(self.entries_max)
    }

    fn entry(&self, number: usize) -> &Entry {
        assert!(number < self.entries_max, "an entry of the array");
        // SAFETY: see `memory`; a shared reference is made under the lock, and nobody writes to an entry but
        // to its atomic figures, unless he holds the lock alone.
        unsafe { &*self.entries.add(number) }
    }

    fn find(&self, database: u32, tenant: Option<&[u8]>) -> Option<&Entry> {
        let mut at = self.hash(database, tenant);
        loop {
            let number = self.place(at).load(Ordering::Relaxed) as usize;
            if number == 0 || number > self.used() {
                return None;
            }
            let entry = self.entry(number - 1);
            if entry.database == database && entry.tenant() == tenant {
                return Some(entry);
            }
            at = at.wrapping_add(1);
        }
    }

    fn make(&self, database: u32, tenant: Option<&[u8]>, now: i64) -> Option<&Entry> {
        let header = self.header();
        let number = self.used();
        let tenants = header.tenants.load(Ordering::Relaxed) as usize;
        let is_full = match tenant {
            Some(_) => tenants >= self.entries_max - RESTS,
            None => number - tenants.min(number) >= RESTS,
        };
        if is_full || number >= self.entries_max {
            return None;
        }
        if header.seed.load(Ordering::Relaxed) == 0 && number == 0 {
            // So that nobody can choose names that fall on one place.
            header.seed.store(RandomState::new().hash_one(now) | 1, Ordering::Relaxed);
        }
        // SAFETY: inside of the array, and nobody else looks at it: the lock is held alone.
        unsafe {
            let entry = &mut *self.entries.add(number);
            entry.database = database;
            entry.since = now;
            entry.name_length = NO_NAME;
            if let Some(name) = tenant
                && let Some(room) = entry.name.get_mut(..name.len())
            {
                room.copy_from_slice(name);
                entry.name_length = name.len() as u32;
            }
            entry.figures = Default::default();
        }
        header.used.store(number as u32 + 1, Ordering::Relaxed);
        if tenant.is_some() {
            header.tenants.store(tenants as u32 + 1, Ordering::Relaxed);
        }
        self.enter(number);
        Some(self.entry(number))
    }

    /// Writes an entry's number into the first free place of its name.
    fn enter(&self, number: usize) {
        let entry = self.entry(number);
        let mut at = self.hash(entry.database, entry.tenant());
        while self.place(at).load(Ordering::Relaxed) != 0 {
            at = at.wrapping_add(1);
        }
        self.place(at).store(number as u32 + 1, Ordering::Relaxed);
    }

    fn remove(&self, database: u32) {
        let header = self.header();
        let mut kept = 0;
        let mut tenants = 0;
        for number in 0..self.used() {
            let entry = self.entry(number);
            if entry.database == database {
                continue;
            }
            tenants += u32::from(entry.name_length != NO_NAME);
            if kept != number {
                // SAFETY: two entries of the array, and the lock is held alone.
                unsafe {
                    std::ptr::copy_nonoverlapping(
                        self.entries.add(number),
                        self.entries.add(kept),
                        1,
                    );
                }
            }
            kept += 1;
        }
        header.used.store(kept as u32, Ordering::Relaxed);
        header.tenants.store(tenants, Ordering::Relaxed);
        for at in 0..self.places_count {
            self.place(at).store(0, Ordering::Relaxed);
        }
        for number in 0..kept {
            self.enter(number);
        }
    }

    fn hash(&self, database: u32, tenant: Option<&[u8]>) -> usize {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.header().seed.load(Ordering::Relaxed));
        hasher.write_u32(database);
        if let Some(name) = tenant {
            hasher.write(name);
        }
        hasher.finish() as usize
    }
}
