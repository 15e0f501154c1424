//! What a forked child finds: nothing.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use fieldcrypt_envelope::{BlockScope, Entropy, NonceBlock, RandomnessUnavailable, SystemEntropy};
use fieldcrypt_locked_memory::LockedSlab;

/// Whether `check` holds in a forked child of this process.
fn holds_in_a_child(check: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child runs `check`, which takes no lock that another thread may hold but the
    // allocator's, which glibc makes usable after fork, and leaves by _exit.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            let held = catch_unwind(AssertUnwindSafe(check)).unwrap_or(false);
            libc::_exit(if held { 42 } else { 1 });
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 42
    }
}

#[test]
fn a_child_finds_the_slab_wiped_and_its_parent_does_not() {
    let mut slab = LockedSlab::new();
    let index = slab.insert([0xC5u8; 48]).unwrap();
    assert!(!slab.was_wiped());
    assert!(holds_in_a_child(|| { slab.was_wiped() && slab.get_mut(index).is_none() }));
    assert!(!slab.was_wiped());
    assert_eq!(slab.get_mut(index), Some(&mut [0xC5u8; 48]));
}

#[test]
fn a_child_can_not_read_the_bytes_of_any_slot() {
    let mut slab = LockedSlab::new();
    let places: Vec<*mut [u8; 48]> = (0..5_000)
        .map(|_| {
            let index = slab.insert([0xC5u8; 48]).unwrap();
            ptr::from_mut(slab.get_mut(index).unwrap())
        })
        .collect();
    assert!(holds_in_a_child(|| {
        // SAFETY: the slab's chunks are mapped in the child too; no reference to a slot is alive.
        (places.iter()).all(|place| unsafe { place.read_volatile() } == [0; 48])
    }));
}

#[test]
fn a_child_starts_afresh_after_forgetting() {
    let mut slab = LockedSlab::new();
    let index = slab.insert([0xC5u8; 48]).unwrap();
    assert!(holds_in_a_child(|| {
        slab.forget_wiped();
        let empty = slab.is_empty() && !slab.was_wiped() && slab.get_mut(index).is_none();
        let own = slab.insert([1u8; 48]).unwrap();
        empty && slab.get_mut(own) == Some(&mut [1u8; 48]) && !slab.was_wiped()
    }));
    assert_eq!(slab.get_mut(index), Some(&mut [0xC5u8; 48]));
}

#[test]
fn a_child_that_forgets_to_ask_breaks_nothing() {
    let mut slab = LockedSlab::new();
    let old = slab.insert(Box::new(1)).unwrap();
    assert!(holds_in_a_child(|| {
        slab.remove(old);
        let new = slab.insert(Box::new(2)).unwrap();
        let kept = slab.get_mut(new).is_some_and(|value| **value == 2);
        slab.remove(new);
        slab.clear();
        kept && slab.is_empty() && !slab.was_wiped()
    }));
}

#[test]
fn a_child_drops_no_value_that_was_wiped() {
    // A box read as zero bytes and dropped would be undefined; a dropped slab must not try.
    let mut slab = LockedSlab::new();
    slab.insert(Box::new([7u8; 100])).unwrap();
    assert!(holds_in_a_child(move || {
        drop(slab);
        true
    }));
}

/// Starts that count up, so that a continued block can be told from a new one.
struct Counting(u8);

impl Entropy for Counting {
    fn block_start(&mut self, _: BlockScope) -> Result<[u8; 16], RandomnessUnavailable> {
        self.0 += 1;
        Ok([self.0; 16])
    }
}

const SCOPE: BlockScope = BlockScope { process: 10, transaction: 20, statement: 30 };

#[test]
fn a_child_never_continues_a_nonce_block_of_its_parent() {
    let mut slab = LockedSlab::new();
    let index = slab.insert(NonceBlock::ENDED).unwrap();
    let block = slab.get_mut(index).unwrap();
    let mut entropy = Counting(0);
    block.next(SCOPE, 1, &mut entropy).unwrap();
    let place = ptr::from_mut(block);
    let draws = Cell::new(0);
    assert!(holds_in_a_child(|| {
        // By the front door there is no block, and by the back door it has ended, even for a child
        // that takes itself for its parent.
        // SAFETY: mapped in the child too, and nothing else refers to it; zero bytes are a NonceBlock.
        let wiped = unsafe { &mut *place };
        let nonce = wiped.next(SCOPE, 1, &mut entropy).unwrap();
        draws.set(entropy.0);
        slab.get_mut(index).is_none() && draws.get() == 2 && nonce.as_bytes() == &[2; 16]
    }));
}

#[test]
fn a_child_never_continues_a_block_that_was_not_wiped_either() {
    let mut block = NonceBlock::ENDED;
    let mut entropy = Counting(0);
    block.next(SCOPE, 1, &mut entropy).unwrap();
    assert!(holds_in_a_child(|| {
        let own = BlockScope { process: 11, ..SCOPE };
        let nonce = block.next(own, 1, &mut entropy).unwrap();
        nonce.as_bytes() == &[2; 16]
    }));
}

#[test]
fn zero_bytes_are_an_ended_block_and_a_fresh_source() {
    // SAFETY: both are made of integers, for which zero bytes are valid.
    let (mut block, mut source) = unsafe {
        (
            MaybeUninit::<NonceBlock>::zeroed().assume_init(),
            MaybeUninit::<SystemEntropy>::zeroed().assume_init(),
        )
    };
    let zero_scope = BlockScope { process: 0, transaction: 0, statement: 0 };
    let first = block.next(zero_scope, 0, &mut source).unwrap();
    assert_ne!(first.as_bytes()[..12], [0; 12]);
    let again = source.block_start(zero_scope).unwrap();
    assert_ne!(again[..12], first.as_bytes()[..12]);
}
