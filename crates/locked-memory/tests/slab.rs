//! Slots: what goes in comes out, and nothing stays behind.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::rc::Rc;

use fieldcrypt_locked_memory::LockedSlab;

type Secret = [u8; 48];

/// Room for some chunks of `Secret`s.
const MANY: usize = 5_000;

fn secret(number: usize) -> Secret {
    let mut out = [0xC5; 48];
    out[..8].copy_from_slice(&number.to_be_bytes());
    out
}

#[test]
fn values_keep_their_place_and_their_content_while_the_slab_grows() {
    let mut slab = LockedSlab::new();
    let mut places = Vec::new();
    for number in 0..MANY {
        let index = slab.insert(secret(number)).unwrap();
        places.push((index, ptr::from_mut(slab.get_mut(index).unwrap())));
    }
    assert_eq!(slab.len(), MANY);
    for (number, (index, place)) in places.iter().enumerate() {
        let value = slab.get_mut(*index).unwrap();
        assert!(ptr::eq(value, *place));
        assert!(*value == secret(number));
    }
}

#[test]
fn a_freed_slot_reads_all_zero() {
    let mut slab = LockedSlab::new();
    let index = slab.insert(secret(1)).unwrap();
    let neighbour = slab.insert(secret(2)).unwrap();
    let place = ptr::from_mut(slab.get_mut(index).unwrap()).cast_const();
    slab.remove(index);
    // SAFETY: the slab keeps its chunks mapped until it is cleared or dropped; nobody writes to this one.
    let left = unsafe { place.read_volatile() };
    assert_eq!(left, [0; 48]);
    assert!(slab.get_mut(index).is_none());
    assert!(*slab.get_mut(neighbour).unwrap() == secret(2));
}

#[test]
fn a_freed_slot_keeps_nothing_in_its_padding() {
    #[repr(C)]
    struct Padded {
        small: u8,
        large: u64,
    }
    let mut slab = LockedSlab::new();
    let index = slab.insert(Padded { small: 0xC5, large: u64::MAX }).unwrap();
    let value = slab.get_mut(index).unwrap();
    assert_eq!((value.small, value.large), (0xC5, u64::MAX));
    let place = ptr::from_mut(value).cast::<[u8; size_of::<Padded>()]>();
    // SAFETY: the slot's own bytes, which nothing refers to at the moment.
    unsafe { place.write_bytes(0xC5, 1) };
    slab.remove(index);
    // SAFETY: still mapped, and overwritten with zero bytes, padding included.
    let left = unsafe { place.read_volatile() };
    assert_eq!(left, [0; size_of::<Padded>()]);
}

#[test]
fn freed_slots_are_used_again_before_the_slab_grows() {
    let mut slab = LockedSlab::new();
    let first: Vec<u32> = (0..MANY).map(|n| slab.insert(secret(n)).unwrap()).collect();
    for index in &first {
        slab.remove(*index);
    }
    assert!(slab.is_empty());
    let mut second: Vec<u32> = (0..MANY).map(|n| slab.insert(secret(n)).unwrap()).collect();
    second.sort_unstable();
    let mut first = first;
    first.sort_unstable();
    assert!(first.iter().eq(second.iter()));
}

#[test]
fn an_index_that_was_never_handed_out_is_no_value() {
    let mut slab = LockedSlab::<Secret>::new();
    assert!(slab.get_mut(0).is_none());
    assert!(slab.get_mut(u32::MAX).is_none());
    slab.remove(0);
    slab.remove(u32::MAX);
    let index = slab.insert(secret(1)).unwrap();
    assert!(slab.get_mut(index + 1).is_none());
    assert!(slab.get_mut(u32::MAX).is_none());
    slab.remove(index + 1);
    assert_eq!(slab.len(), 1);
}

#[test]
fn removing_twice_frees_once() {
    let mut slab = LockedSlab::new();
    let index = slab.insert(secret(1)).unwrap();
    slab.remove(index);
    slab.remove(index);
    assert!(slab.is_empty());
    let (one, other) = (slab.insert(secret(2)), slab.insert(secret(3)));
    assert_ne!(one, other, "one slot must not be handed out twice");
}

struct Counted(Rc<Cell<u32>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

#[test]
fn every_value_is_dropped_exactly_once() {
    let drops = Rc::new(Cell::new(0));
    let mut slab = LockedSlab::new();
    let removed = slab.insert(Counted(Rc::clone(&drops))).unwrap();
    slab.insert(Counted(Rc::clone(&drops))).unwrap();
    slab.insert(Counted(Rc::clone(&drops))).unwrap();
    slab.remove(removed);
    assert_eq!(drops.get(), 1);
    slab.clear();
    assert_eq!(drops.get(), 3);
    slab.insert(Counted(Rc::clone(&drops))).unwrap();
    drop(slab);
    assert_eq!(drops.get(), 4);
}

#[test]
fn a_cleared_slab_can_be_filled_again() {
    let mut slab = LockedSlab::new();
    let index = slab.insert(secret(1)).unwrap();
    slab.clear();
    assert!(slab.is_empty());
    assert!(slab.get_mut(index).is_none());
    slab.clear();
    let index = slab.insert(secret(2)).unwrap();
    assert!(*slab.get_mut(index).unwrap() == secret(2));
    assert!(!slab.was_wiped());
}

#[test]
fn a_value_whose_drop_panics_is_not_dropped_again() {
    struct Panics(Rc<Cell<u32>>);
    impl Drop for Panics {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
            if self.0.get() == 1 {
                std::panic::resume_unwind(Box::new("drop"));
            }
        }
    }
    let drops = Rc::new(Cell::new(0));
    let mut slab = LockedSlab::new();
    let index = slab.insert(Panics(Rc::clone(&drops))).unwrap();
    let outcome = catch_unwind(AssertUnwindSafe(|| slab.remove(index)));
    assert!(outcome.is_err());
    assert!(slab.get_mut(index).is_none());
    assert!(slab.is_empty());
    drop(slab);
    assert_eq!(drops.get(), 1);
}

#[test]
fn slots_are_aligned_for_what_they_hold() {
    #[repr(align(256))]
    struct Aligned(u8);
    let mut slab = LockedSlab::new();
    for number in 0..1_000u32 {
        let index = slab.insert(Aligned(number as u8)).unwrap();
        let value = slab.get_mut(index).unwrap();
        assert_eq!(value.0, number as u8);
        assert!(ptr::from_mut(value).addr().is_multiple_of(256));
    }
}

#[test]
fn values_without_size_and_values_of_nearly_a_chunk_fit() {
    let mut slab = LockedSlab::new();
    let indexes: Vec<u32> = (0..10_000).map(|_| slab.insert(()).unwrap()).collect();
    assert_eq!(slab.len(), 10_000);
    assert!(indexes.iter().all(|index| slab.get_mut(*index).is_some()));

    let mut slab = LockedSlab::new();
    let one = slab.insert([1u64; 8191]).unwrap();
    let two = slab.insert([2u64; 8191]).unwrap();
    assert_eq!(slab.get_mut(one).unwrap()[8190], 1);
    assert_eq!(slab.get_mut(two).unwrap()[0], 2);
}
