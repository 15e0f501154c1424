//! Nonces, dealt from blocks so that a bulk statement derives one AES-GCM key, not one a row.
//!
//! A block starts at S, 16 random bytes; value i carries S with i added to its last 4 bytes
//! (big-endian, modulo 2^32). The first 12 bytes choose the AES-GCM key, the last 4 are its nonce.

use rustix::time::{ClockId, clock_gettime};
use zeroize::{Zeroize, Zeroizing};

use crate::primitives::{RandomnessUnavailable, random, sha256};

/// The 16 stored bytes of a nonce. XAES-256-GCM's 24 bytes are `N[..12] ‖ 0^8 ‖ N[12..]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nonce([u8; Nonce::LENGTH]);

impl Nonce {
    /// Bytes stored with a value.
    pub const LENGTH: usize = 16;

    /// A nonce read from a value.
    pub fn from_bytes(bytes: [u8; Self::LENGTH]) -> Self {
        Self(bytes)
    }

    /// The bytes to store.
    pub fn as_bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }

    /// The part that chooses the AES-GCM key.
    pub fn prefix(&self) -> &[u8; 12] {
        self.0.first_chunk().unwrap_or(&[0; 12])
    }

    pub(crate) fn gcm_nonce(&self) -> [u8; 12] {
        let mut out = [0; 12];
        out[8..].copy_from_slice(&self.0[12..]);
        out
    }
}

/// Where the randomness of a block comes from; tests inject their own.
pub trait Entropy {
    /// 16 bytes for the start of a new block.
    fn block_start(&mut self, scope: BlockScope) -> Result<[u8; 16], RandomnessUnavailable>;
}

/// `SHA-256(32 bytes from the operating system ‖ realtime ns ‖ monotonic ns ‖ pid ‖ serial)[..16]`.
///
/// Times, process and serial hedge a machine that is cloned with its random state. Where one
/// statement starts many blocks (many tenants), the random bytes of the later ones are fetched some
/// at a time; what is left is thrown away with the scope, so nothing waits in memory for a clone
/// longer than a block would. Like a block, it belongs in memory that is wiped on fork: all zero
/// bytes are a fresh one.
pub struct SystemEntropy {
    serial: u64,
    scope: BlockScope,
    blocks_in_scope: usize,
    stocked: usize,
    stock: [[u8; 32]; SystemEntropy::MAX_STOCK],
}

impl SystemEntropy {
    const MAX_STOCK: usize = 64;

    /// Nothing drawn yet.
    pub const NEW: Self = Self {
        serial: 0,
        scope: BlockScope { process: 0, transaction: 0, statement: 0 },
        blocks_in_scope: 0,
        stocked: 0,
        stock: [[0; 32]; Self::MAX_STOCK],
    };

    fn random_32(
        &mut self,
        scope: BlockScope,
    ) -> Result<Zeroizing<[u8; 32]>, RandomnessUnavailable> {
        if self.scope != scope {
            self.scope = scope;
            self.blocks_in_scope = 0;
            self.forget_stock();
        }
        if self.stocked == 0 {
            let wanted = self.blocks_in_scope.clamp(1, Self::MAX_STOCK);
            random(self.stock[..wanted].as_flattened_mut())?;
            self.stocked = wanted;
        }
        self.blocks_in_scope += 1;
        self.stocked -= 1;
        Ok(Zeroizing::new(std::mem::take(&mut self.stock[self.stocked])))
    }

    fn forget_stock(&mut self) {
        self.stock[..self.stocked].as_flattened_mut().zeroize();
        self.stocked = 0;
    }
}

impl Entropy for SystemEntropy {
    fn block_start(&mut self, scope: BlockScope) -> Result<[u8; 16], RandomnessUnavailable> {
        let random = self.random_32(scope)?;
        self.serial = self.serial.wrapping_add(1);
        let hash = sha256(&[
            &*random,
            &nanoseconds(ClockId::Realtime),
            &nanoseconds(ClockId::Monotonic),
            &scope.process.to_be_bytes(),
            &self.serial.to_be_bytes(),
        ]);
        let mut start = [0; 16];
        start.copy_from_slice(&hash[..16]);
        Ok(start)
    }
}

fn nanoseconds(clock: ClockId) -> [u8; 8] {
    let now = clock_gettime(clock);
    now.tv_sec.wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec).to_be_bytes()
}

/// Whom a block belongs to. A block never crosses any of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockScope {
    /// The process, as the database numbers it.
    pub process: u32,
    /// The transaction, by any number that is new for each.
    pub transaction: u64,
    /// The client's statement, by the time it began.
    pub statement: i64,
}

/// The nonces of one key. All zero bytes are an ended block, which is what a wipe on fork leaves.
pub struct NonceBlock {
    start: [u8; 16],
    scope: BlockScope,
    values_left: u32,
    bytes_left: u64,
}

impl NonceBlock {
    /// Values that a block may seal.
    pub const MAX_VALUES: u32 = 65_536;
    /// Bytes of plaintext that a block may seal: 64 GiB.
    pub const MAX_BYTES: u64 = 64 << 30;
    /// An ended block: the next nonce starts a new one.
    pub const ENDED: Self = Self {
        start: [0; 16],
        scope: BlockScope { process: 0, transaction: 0, statement: 0 },
        values_left: 0,
        bytes_left: 0,
    };

    /// The nonce for the next value, of `length` bytes of plaintext. What it hands out it never
    /// hands out again, whatever becomes of the value; an error leaves the block ended.
    pub fn next(
        &mut self,
        scope: BlockScope,
        length: u64,
        entropy: &mut impl Entropy,
    ) -> Result<Nonce, RandomnessUnavailable> {
        if self.values_left == 0 || self.bytes_left < length || self.scope != scope {
            *self = Self::ENDED;
            let start = entropy.block_start(scope)?;
            *self =
                Self { start, scope, values_left: Self::MAX_VALUES, bytes_left: Self::MAX_BYTES };
        }
        let index = Self::MAX_VALUES - self.values_left;
        self.values_left -= 1;
        self.bytes_left = self.bytes_left.saturating_sub(length);
        let mut nonce = self.start;
        let (_, counter) = nonce.split_at_mut(12);
        let first = counter.iter().fold(0u32, |sum, byte| (sum << 8) | u32::from(*byte));
        counter.copy_from_slice(&first.wrapping_add(index).to_be_bytes());
        Ok(Nonce(nonce))
    }
}

#[cfg(test)]
mod tests;
