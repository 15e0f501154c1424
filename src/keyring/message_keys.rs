//! A small cache of AES-GCM keys, by key id, kind of values and nonce prefix: the rows of a bulk statement share one.

use fieldcrypt_envelope::{KeyId, Kind, Nonce};
use fieldcrypt_locked_memory::{LockedSlab, SHALLOW, with_scrubbed_stack};

use crate::error::Error;

pub struct MessageKeys<K> {
    keys: LockedSlab<K>,
    places: Box<[Option<Place>; PLACES]>,
}

const PLACES: usize = 64;

#[derive(Clone, Copy)]
struct Place {
    key_id: KeyId,
    kind: Kind,
    prefix: [u8; 12],
    index: u32,
}

impl<K> MessageKeys<K> {
    /// An empty one. Maps no memory.
    pub fn new() -> Self {
        Self { keys: LockedSlab::new(), places: Box::new([None; PLACES]) }
    }

    /// Whether its memory reads as zero bytes, in a forked child.
    pub fn was_wiped(&self) -> bool {
        self.keys.was_wiped()
    }

    /// The key for a nonce, which `derive` makes if it is not there.
    #[inline]
    pub fn get(
        &mut self,
        key_id: KeyId,
        kind: Kind,
        nonce: &Nonce,
        derive: impl FnOnce() -> Result<K, Error>,
    ) -> Result<&K, Error> {
        let prefix = nonce.prefix();
        // Prefixes are random, so any byte of them spreads evenly.
        let place = &mut self.places[usize::from(prefix[0]) % PLACES];
        let index = match place {
            Some(known)
                if known.key_id == key_id && known.kind == kind && known.prefix == *prefix =>
            {
                known.index
            }
            _ => {
                if let Some(old) = place.take() {
                    self.keys.remove(old.index);
                }
                let keys = &mut self.keys;
                let index = with_scrubbed_stack::<SHALLOW, _>(|| {
                    keys.insert(derive()?)
                        .map_err(|_| Error::OutOfMemory { what: "encryption keys" })
                })?;
                *place = Some(Place { key_id, kind, prefix: *prefix, index });
                index
            }
        };
        match self.keys.get_mut(index) {
            Some(key) => Ok(key),
            None => Err(Error::OutOfMemory { what: "encryption keys" }),
        }
    }

    /// Forgets those of a data key.
    pub fn forget(&mut self, key_id: KeyId) {
        for place in self.places.iter_mut() {
            if place.is_some_and(|known| known.key_id == key_id)
                && let Some(known) = place.take()
            {
                self.keys.remove(known.index);
            }
        }
    }
}
