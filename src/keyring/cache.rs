//! The cache of unwrapped keys: by id, and by tenant for the active ones.
//!
//! A cached key is good as of a generation of `encryption_keys`. When that is over, its row is read
//! again: unchanged, it stays without being unwrapped again; changed, it goes. What a transaction
//! that may yet roll back wrote, and what it read of its own writes, carries its subtransaction.
//!
//! Beside each key stands what it was used for since that was last taken.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

use fieldcrypt_envelope::{
    BlockScope, BoundMessageKey, KeyId, KeyState, Kind, MessageKey, Nonce, NonceBlock, Purpose,
    SystemEntropy, WrongKey,
};
use fieldcrypt_locked_memory::LockedSlab;
use pgrx::pg_sys::SubTransactionId;

use super::message_keys::MessageKeys;
use super::salts::Salts;
use super::secret_keys::SecretKeys;
use super::tally::{Stopwatch, Tally};
use crate::error::Error;

/// Is told what a key of a tenant was used for.
pub type TakeUse<'a> = dyn FnMut(&Rc<[u8]>, KeyId, &Tally) + 'a;

/// What is known of a cached key, all of it public.
pub struct Facts {
    /// Its id.
    pub key_id: KeyId,
    /// Its tenant, in the database's encoding.
    pub tenant: Rc<[u8]>,
    /// What it is for: a tenant's values, or loose ones. Keys of other purposes are not cached here.
    pub purpose: Purpose,
    /// Its state: active, deactivated or compromised. Others are not cached.
    pub state: KeyState,
    /// Its check value, by which a row is known to hold the same key.
    pub check: [u8; 16],
    /// The generation before the snapshot that its row was read with.
    pub generation: u64,
    /// The subtransaction that wrote the row, or one inside it, while it may roll back.
    pub uncommitted: Option<SubTransactionId>,
}

/// Where a key stands in the cache. Good until the cache changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(u32);

/// The cache.
pub struct Cache {
    secrets: LockedSlab<Secret>,
    entries: Vec<Option<Entry>>,
    by_id: HashMap<KeyId, Slot, BuildHasherDefault<RandomIdHasher>>,
    active: HashMap<Rc<[u8]>, Slot>,
    active_loose: Option<Slot>,
    last_active: Slot,
    last_key: Slot,
    clock_hand: usize,
    uncommitted: usize,
    messages: MessageKeys<MessageKey>,
    bound_messages: MessageKeys<BoundMessageKey>,
    entropy: LockedSlab<SystemEntropy>,
    salts: Salts,
    used: Vec<Slot>,
    gone: Vec<Gone>,
    until_timed: u32,
    epoch: u64,
}

/// What a key was used for that is no longer cached.
struct Gone {
    tenant: Rc<[u8]>,
    key_id: KeyId,
    tally: Tally,
}

struct Secret {
    keys: SecretKeys,
    block: NonceBlock,
}

struct Entry {
    facts: Facts,
    recently_used: bool,
    tally: Tally,
}

impl Cache {
    /// An empty one. Draws nothing random and maps no memory.
    pub fn new() -> Self {
        Self {
            secrets: LockedSlab::new(),
            entries: Vec::new(),
            by_id: HashMap::default(),
            active: HashMap::new(),
            active_loose: None,
            last_active: Slot(0),
            last_key: Slot(0),
            clock_hand: 0,
            uncommitted: 0,
            messages: MessageKeys::new(),
            bound_messages: MessageKeys::new(),
            entropy: LockedSlab::new(),
            salts: Salts::NONE,
            used: Vec::new(),
            gone: Vec::new(),
            until_timed: Stopwatch::first(std::process::id()),
            epoch: 0,
        }
    }

    /// Forgets everything in a forked child, whose copy of the secrets reads as zero bytes, and what was
    /// unwrapped in another epoch of the master keys. Says whether it did.
    #[inline]
    pub fn wake(&mut self, forget: bool, epoch: u64) -> bool {
        let wiped = self.secrets.was_wiped()
            || self.entropy.was_wiped()
            || self.messages.was_wiped()
            || self.bound_messages.was_wiped();
        let is_old = wiped || forget || self.epoch != epoch;
        if is_old {
            self.forget_everything();
            self.epoch = epoch;
        }
        is_old
    }

    /// The tenant's active key as of a generation.
    #[inline]
    pub fn active(&mut self, tenant: &[u8], as_of: u64) -> Option<Slot> {
        let good = |facts: &Facts| {
            facts.state == KeyState::Active
                && facts.generation == as_of
                && facts.purpose == Purpose::Field
                && *facts.tenant == *tenant
        };
        if let Some(entry) = self.entry_mut(self.last_active)
            && good(&entry.facts)
        {
            return self.found(self.last_active);
        }
        let slot = *self.active.get(tenant)?;
        if !good(&self.entry_mut(slot)?.facts) {
            return None;
        }
        self.last_active = slot;
        self.found(slot)
    }

    /// The active key of loose values as of a generation.
    #[inline]
    pub fn active_loose(&mut self, as_of: u64) -> Option<Slot> {
        let slot = self.active_loose?;
        let facts = &self.entry_mut(slot)?.facts;
        let is_good = facts.state == KeyState::Active && facts.generation == as_of;
        if is_good { self.found(slot) } else { None }
    }

    /// A key as of a generation.
    #[inline]
    pub fn key(&mut self, key_id: KeyId, as_of: u64) -> Option<Slot> {
        let good = |facts: &Facts| facts.generation == as_of && facts.key_id == key_id;
        if let Some(entry) = self.entry_mut(self.last_key)
            && good(&entry.facts)
        {
            return self.found(self.last_key);
        }
        let slot = *self.by_id.get(&key_id)?;
        if !good(&self.entry_mut(slot)?.facts) {
            return None;
        }
        self.last_key = slot;
        self.found(slot)
    }

    #[inline]
    fn found(&mut self, slot: Slot) -> Option<Slot> {
        let entry = self.entry_mut(slot)?;
        entry.recently_used = true;
        entry.tally.look_ups += 1;
        if entry.tally.look_ups == 1 {
            self.used.push(slot);
            super::first_use();
        }
        Some(slot)
    }

    /// What the key in a slot that was just found is used for, to be added to.
    #[inline]
    pub fn tally(&mut self, slot: Slot) -> &mut Tally {
        match self.entries.get_mut(slot.0 as usize) {
            Some(Some(entry)) => &mut entry.tally,
            _ => unreachable!("a slot is used only before the cache changes"),
        }
    }

    /// Times some of the uses.
    #[inline]
    pub fn stopwatch(&mut self) -> Stopwatch {
        Stopwatch::start(&mut self.until_timed)
    }

    /// Takes what each key was used for since this was last called.
    pub fn take_use(&mut self, take: &mut TakeUse<'_>) {
        for gone in self.gone.drain(..) {
            take(&gone.tenant, gone.key_id, &gone.tally);
        }
        // What is in a slot that was used and emptied since has no use yet, or is in the list again.
        while let Some(slot) = self.used.pop() {
            if let Some(entry) = self.entry_mut(slot)
                && entry.tally.look_ups > 0
            {
                let tally = std::mem::take(&mut entry.tally);
                take(&entry.facts.tenant, entry.facts.key_id, &tally);
            }
        }
    }

    /// Whether so many used keys are no longer cached that their use should be taken.
    pub fn is_full_of_use(&self) -> bool {
        self.gone.len() >= Self::GONE_KEPT
    }

    const GONE_KEPT: usize = 4096;

    /// The tenant of a key, if it is cached.
    pub fn tenant(&self, key_id: KeyId) -> Option<Rc<[u8]>> {
        self.by_id.get(&key_id).map(|slot| Rc::clone(&self.facts(*slot).tenant))
    }

    /// What is known of the key in a slot that [`active`](Self::active) or [`key`](Self::key) gave.
    #[inline]
    pub fn facts(&self, slot: Slot) -> &Facts {
        match self.entries.get(slot.0 as usize) {
            Some(Some(entry)) => &entry.facts,
            _ => unreachable!("a slot is used only before the cache changes"),
        }
    }

    /// The next nonce of the key in a slot.
    #[inline]
    pub fn next_nonce(
        &mut self,
        slot: Slot,
        scope: BlockScope,
        length: u64,
    ) -> Result<Nonce, Error> {
        if self.entropy.is_empty() {
            self.entropy
                .insert(SystemEntropy::NEW)
                .map_err(|_| Error::OutOfMemory { what: "encryption keys" })?;
        }
        let (Some(entropy), Some(secret)) = (self.entropy.get_mut(0), self.secrets.get_mut(slot.0))
        else {
            return Err(Error::OutOfMemory { what: "encryption keys" });
        };
        Ok(secret.block.next(scope, length, entropy)?)
    }

    /// The AES-GCM key for a nonce under the key in a slot.
    #[inline]
    pub fn message_key(&mut self, slot: Slot, nonce: &Nonce) -> Result<&MessageKey, Error> {
        let key_id = self.facts(slot).key_id;
        match self.secrets.get_mut(slot.0).map(|secret| secret.keys.plain()) {
            Some(Some(key)) => {
                self.messages.get(key_id, Kind::Bound, nonce, || Ok(key.message_key(nonce)))
            }
            Some(None) => Err(not_for_it(key_id)),
            None => Err(Error::OutOfMemory { what: "encryption keys" }),
        }
    }

    /// The AES-GCM key for a nonce of a bound or loose value under the key in a slot.
    #[inline]
    pub fn bound_message_key(
        &mut self,
        slot: Slot,
        kind: Kind,
        nonce: &Nonce,
    ) -> Result<&BoundMessageKey, Error> {
        let key_id = self.facts(slot).key_id;
        match self.secrets.get_mut(slot.0).map(|secret| secret.keys.of_kind(kind)) {
            Some(Some(key)) => self.bound_messages.get(key_id, kind, nonce, || {
                key.message_key(kind, key_id, nonce).map_err(|WrongKey| not_for_it(key_id))
            }),
            Some(None) => Err(not_for_it(key_id)),
            None => Err(Error::OutOfMemory { what: "encryption keys" }),
        }
    }

    /// Random bytes for the place of a value.
    #[inline]
    pub fn next_salt(&mut self) -> Result<[u8; 4], Error> {
        self.salts.next()
    }

    /// If the key of a freshly read row is cached, updates what is known of it; otherwise gives the
    /// facts back, for [`insert`](Self::insert).
    pub fn revalidate(&mut self, facts: Facts) -> Option<Facts> {
        let Some(slot) = self.by_id.get(&facts.key_id).copied() else { return Some(facts) };
        let known = self.facts(slot);
        if known.check != facts.check || known.tenant != facts.tenant {
            self.remove(slot);
            return Some(facts);
        }
        let tenant = Rc::clone(&known.tenant);
        self.count_uncommitted(slot, facts.uncommitted.is_some());
        if facts.state == KeyState::Active {
            self.note_active(&facts, slot);
        } else {
            self.forget_active(&tenant, slot);
        }
        if let Some(entry) = self.entry_mut(slot) {
            entry.facts = Facts { tenant, ..facts };
        }
        None
    }

    /// Caches a key, after evicting what exceeds the limit.
    pub fn insert(&mut self, facts: Facts, keys: SecretKeys, limit: usize) -> Result<(), Error> {
        self.forget(facts.key_id);
        while self.secrets.len() >= limit.max(1) {
            self.evict_one();
        }
        let secret = Secret { keys, block: NonceBlock::ENDED };
        let slot = Slot(
            self.secrets
                .insert(secret)
                .map_err(|_| Error::OutOfMemory { what: "encryption keys" })?,
        );
        let index = slot.0 as usize;
        if self.entries.len() <= index {
            self.entries.resize_with(index + 1, || None);
        }
        self.by_id.insert(facts.key_id, slot);
        if facts.state == KeyState::Active {
            self.note_active(&facts, slot);
        }
        self.uncommitted += usize::from(facts.uncommitted.is_some());
        self.entries[index] = Some(Entry { facts, recently_used: true, tally: Tally::default() });
        Ok(())
    }

    /// Forgets a key, if it is cached.
    pub fn forget(&mut self, key_id: KeyId) {
        if let Some(slot) = self.by_id.get(&key_id).copied() {
            self.remove(slot);
        }
    }

    /// Forgets every key, but not what they were used for.
    fn forget_everything(&mut self) {
        let mut gone = Vec::new();
        self.take_use(&mut |tenant, key_id, tally| {
            gone.push(Gone { tenant: Rc::clone(tenant), key_id, tally: *tally });
        });
        *self = Self { gone, ..Self::new() };
    }

    /// Uncommitted keys are committed.
    pub fn transaction_committed(&mut self) {
        self.each_uncommitted(|_| Fate::Commit);
    }

    /// Uncommitted keys of a subtransaction become its parent's.
    pub fn subtransaction_committed(&mut self, child: SubTransactionId, parent: SubTransactionId) {
        self.each_uncommitted(|of| if of >= child { Fate::MoveTo(parent) } else { Fate::Stay });
    }

    /// Drops the keys of a subtransaction and of those inside it, which have higher numbers; with 0,
    /// of all.
    pub fn subtransaction_gone(&mut self, child: SubTransactionId) {
        self.each_uncommitted(|of| if of >= child { Fate::Drop } else { Fate::Stay });
    }

    fn each_uncommitted(&mut self, fate: impl Fn(SubTransactionId) -> Fate) {
        if self.uncommitted == 0 {
            return;
        }
        for index in 0..self.entries.len() {
            let Some(Some(entry)) = self.entries.get_mut(index) else { continue };
            let Some(of) = entry.facts.uncommitted else { continue };
            match fate(of) {
                Fate::Stay => {}
                Fate::MoveTo(parent) => entry.facts.uncommitted = Some(parent),
                Fate::Commit => {
                    entry.facts.uncommitted = None;
                    self.uncommitted -= 1;
                }
                Fate::Drop => self.remove(Slot(index as u32)),
            }
        }
    }

    /// The clock algorithm: a key used since the hand last passed is spared once.
    fn evict_one(&mut self) {
        while !self.entries.is_empty() {
            self.clock_hand = (self.clock_hand + 1) % self.entries.len();
            match &mut self.entries[self.clock_hand] {
                Some(entry) if entry.recently_used => entry.recently_used = false,
                Some(_) => return self.remove(Slot(self.clock_hand as u32)),
                None => {}
            }
        }
    }

    fn remove(&mut self, slot: Slot) {
        let Some(entry) = self.entries.get_mut(slot.0 as usize).and_then(Option::take) else {
            return;
        };
        if entry.tally.look_ups > 0 {
            self.gone.push(Gone {
                tenant: Rc::clone(&entry.facts.tenant),
                key_id: entry.facts.key_id,
                tally: entry.tally,
            });
        }
        self.uncommitted -= usize::from(entry.facts.uncommitted.is_some());
        self.by_id.remove(&entry.facts.key_id);
        self.forget_active(&entry.facts.tenant, slot);
        self.messages.forget(entry.facts.key_id);
        self.bound_messages.forget(entry.facts.key_id);
        self.secrets.remove(slot.0);
    }

    fn note_active(&mut self, facts: &Facts, slot: Slot) {
        match facts.purpose {
            Purpose::Loose => self.active_loose = Some(slot),
            _ => drop(self.active.insert(Rc::clone(&facts.tenant), slot)),
        }
    }

    fn forget_active(&mut self, tenant: &[u8], slot: Slot) {
        if self.active_loose == Some(slot) {
            self.active_loose = None;
        } else if self.active.get(tenant) == Some(&slot) {
            self.active.remove(tenant);
        }
    }

    fn count_uncommitted(&mut self, slot: Slot, now: bool) {
        let before = self.facts(slot).uncommitted.is_some();
        self.uncommitted = self.uncommitted + usize::from(now) - usize::from(before);
    }

    #[inline]
    fn entry_mut(&mut self, slot: Slot) -> Option<&mut Entry> {
        self.entries.get_mut(slot.0 as usize)?.as_mut()
    }
}

enum Fate {
    Stay,
    MoveTo(SubTransactionId),
    Commit,
    Drop,
}

/// The row of a key says that it is for something else than what it is asked for.
#[cold]
fn not_for_it(key: KeyId) -> Error {
    Error::NotAuthentic { key, has_context: None }
}

/// Key ids are random already: one multiplication spreads them over the table.
#[derive(Default)]
struct RandomIdHasher(u64);

impl Hasher for RandomIdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
