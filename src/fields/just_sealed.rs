//! Plaintexts of the loose values that this process sealed last. The trigger that binds one to its row mostly comes right
//! behind its input: it need not open then what is the same, byte by byte.
//!
//! In locked memory, of short values alone, each until it is bound, [`KEPT`] others have come in or the transaction ends.

use std::cell::RefCell;

use fieldcrypt_envelope::Kind;
use fieldcrypt_envelope::bound::overhead;
use fieldcrypt_locked_memory::LockedSlab;
use zeroize::Zeroize;

use crate::error::Error;
use crate::pg::callbacks::{self, Listener};
use crate::pg::invalidations;
use crate::pg::values::Varlena;

/// Bytes of the longest plaintext that is kept. To copy a longer one costs about what opening does.
const LONGEST: usize = 256;
const KEPT: usize = 8;

struct Entry {
    /// 0: none. The shortest value is longer.
    length: usize,
    /// That of the keys when it was sealed: what was done to one since must not be passed by.
    generation: u64,
    sealed: [u8; LONGEST + overhead(Kind::Loose)],
    plaintext: [u8; LONGEST],
}

struct Last {
    entries: [Entry; KEPT],
    next: usize,
    is_empty: bool,
}

thread_local! {
    static LAST: RefCell<LockedSlab<Last>> = const { RefCell::new(LockedSlab::new()) };
}

/// Is told of the ends of transactions.
pub fn init() {
    callbacks::listen(Listener { ended: forget, ..Listener::DEAF });
}

/// Keeps a plaintext beside what it was sealed as, if there is room for it.
#[inline]
pub fn keep(sealed: &[u8], plaintext: &[u8]) {
    if plaintext.len() > LONGEST || sealed.len() > LONGEST + overhead(Kind::Loose) {
        return;
    }
    LAST.with_borrow_mut(|slab| {
        let Some(last) = last_of(slab) else { return };
        let entry = &mut last.entries[last.next % KEPT];
        entry.wipe();
        entry.length = sealed.len();
        entry.generation = invalidations::generation();
        entry.sealed[..sealed.len()].copy_from_slice(sealed);
        entry.plaintext[..plaintext.len()].copy_from_slice(plaintext);
        last.next = (last.next + 1) % KEPT;
        last.is_empty = false;
    });
}

/// The plaintext of a value that is kept, which it is no longer.
#[inline]
pub fn take(sealed: &[u8]) -> Result<Option<Varlena>, Error> {
    invalidations::accept_invalidations();
    let generation = invalidations::generation();
    LAST.with_borrow_mut(|slab| {
        let Some(last) = slab.get_mut(0) else { return Ok(None) };
        let is_it = |entry: &&mut Entry| {
            entry.length == sealed.len() && entry.sealed[..entry.length] == *sealed
        };
        let Some(entry) = last.entries.iter_mut().find(is_it) else { return Ok(None) };
        let is_good = entry.generation == generation;
        let plaintext = match is_good {
            true => Some(Varlena::of(&entry.plaintext[..entry.plaintext_length()])?),
            false => None,
        };
        entry.wipe();
        Ok(plaintext)
    })
}

/// Called where nothing may fail.
fn forget() {
    let _ = LAST.try_with(|slab| {
        slab.try_borrow_mut().map(|mut slab| {
            if let Some(last) = slab.get_mut(0)
                && !last.is_empty
            {
                last.entries.iter_mut().for_each(Entry::wipe);
                last.is_empty = true;
            }
        })
    });
}

/// `None` where the system gives no memory, and after a fork: the child is no session.
fn last_of(slab: &mut LockedSlab<Last>) -> Option<&mut Last> {
    if slab.is_empty() {
        let entries = [const { Entry::NONE }; KEPT];
        slab.insert(Last { entries, next: 0, is_empty: true }).ok()?;
    }
    slab.get_mut(0)
}

impl Entry {
    const NONE: Self = Self {
        length: 0,
        generation: 0,
        sealed: [0; LONGEST + overhead(Kind::Loose)],
        plaintext: [0; LONGEST],
    };

    fn plaintext_length(&self) -> usize {
        self.length.saturating_sub(overhead(Kind::Loose))
    }

    #[inline]
    fn wipe(&mut self) {
        let length = self.plaintext_length();
        self.plaintext[..length].zeroize();
        self.length = 0;
    }
}
