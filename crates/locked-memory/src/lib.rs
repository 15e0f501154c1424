//! Memory for secrets: a slab of fixed-size slots that is not swapped (`mlock`), not in core dumps
//! (`MADV_DONTDUMP`), zero in a forked child (`MADV_WIPEONFORK`), and wiped when a slot is released.
//!
//! Each of the three is asked of the system and done without where it says no (`RLIMIT_MEMLOCK`,
//! an old kernel); [`LockedSlab::protection`] says what was got.
//!
//! Whoever keeps secrets here must ask [`LockedSlab::was_wiped`] before using any: in a forked child
//! every slot reads as zero bytes, which for a key is a key. No reference into a slot may be held
//! over a fork.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use zeroize::Zeroize;

/// What the system granted for every chunk of a slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protection {
    /// Pages are not swapped out.
    pub locked: bool,
    /// Pages are left out of core dumps.
    pub undumped: bool,
    /// Pages are zero in a forked child.
    pub wiped_on_fork: bool,
}

/// Slots for values of `T` in protected memory, addressed by index.
///
/// A slot, once handed out, never moves; its index is used again after [`remove`](Self::remove).
/// `T` should be plain enough that dropping it and overwriting it with zero bytes is all the cleaning
/// it needs: a child that finds the slots wiped drops nothing.
pub struct LockedSlab<T> {
    chunks: Vec<NonNull<Slot<T>>>,
    free: Vec<u32>,
    occupied: u32,
    marker: Option<NonNull<u64>>,
    protection: Protection,
    owns: PhantomData<T>,
}

#[repr(C)]
struct Slot<T> {
    occupied: u64,
    value: T,
}

/// The system gave no memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfMemory;

const PAGE: usize = 4096;
const CHUNK_BYTES: usize = 64 * 1024;
const ALIVE: u64 = 0x6669_656c_6463_7279;

impl<T> LockedSlab<T> {
    const SLOTS_PER_CHUNK: usize = {
        assert!(align_of::<Slot<T>>() <= PAGE);
        let slots = CHUNK_BYTES / size_of::<Slot<T>>();
        assert!(slots > 0, "a slot must fit a chunk");
        slots
    };

    /// An empty slab. Nothing is allocated before the first [`insert`](Self::insert).
    pub const fn new() -> Self {
        Self {
            chunks: Vec::new(),
            free: Vec::new(),
            occupied: 0,
            marker: None,
            protection: Protection { locked: true, undumped: true, wiped_on_fork: true },
            owns: PhantomData,
        }
    }

    /// Puts a value into a slot.
    pub fn insert(&mut self, value: T) -> Result<u32, OutOfMemory> {
        if self.free.is_empty() {
            self.grow()?;
        }
        let index = self.free.pop().ok_or(OutOfMemory)?;
        let slot = self.slot(index);
        // SAFETY: `slot` lies in a chunk of this slab, and is free: no value is overwritten undropped.
        // The exclusive borrow of the slab rules out references into it.
        unsafe {
            (&raw mut (*slot).value).write(value);
            (*slot).occupied = 1;
        }
        self.occupied += 1;
        Ok(index)
    }

    /// The value in a slot, unless it is free.
    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        if index as usize >= self.chunks.len() * Self::SLOTS_PER_CHUNK {
            return None;
        }
        let slot = self.slot(index);
        // SAFETY: `slot` lies in a chunk of this slab. `occupied` is always initialised, by the kernel's
        // zero bytes at first; while it is 1 the value is. A chunk wiped by a fork reads 0. The reference
        // borrows the slab exclusively.
        unsafe { ((*slot).occupied == 1).then(|| &mut (*slot).value) }
    }

    /// The values in two different slots.
    pub fn get_two(&mut self, one: u32, other: u32) -> Option<(&T, &T)> {
        let one: *const T = self.get_mut(one)?;
        let other: *const T = self.get_mut(other)?;
        // SAFETY: both were just found; the second look-up moves and changes nothing, and the shared
        // references borrow the slab.
        unsafe { Some((&*one, &*other)) }
    }

    /// Drops the value in a slot and overwrites it with zero bytes.
    pub fn remove(&mut self, index: u32) {
        let Some(value) = self.get_mut(index) else {
            return;
        };
        let value: *mut T = value;
        let slot = self.slot(index);
        self.occupied -= 1;
        // SAFETY: the value is initialised and no reference to it is left. `occupied` is cleared first,
        // so that it is not dropped again, should its drop panic. The bytes of the slot, padding
        // included, are memory of this slab's alone; zero bytes make it a free slot.
        unsafe {
            (*slot).occupied = 0;
            ptr::drop_in_place(value);
            let bytes = slot.cast::<MaybeUninit<u8>>();
            std::slice::from_raw_parts_mut(bytes, size_of::<Slot<T>>()).zeroize();
        }
        self.free.push(index);
    }

    /// Drops every value and gives the memory back.
    pub fn clear(&mut self) {
        for index in 0..self.chunks.len() * Self::SLOTS_PER_CHUNK {
            self.remove(index as u32);
        }
        self.release();
    }

    /// Gives the memory back without dropping or overwriting what is in it: for a child that finds it
    /// wiped.
    pub fn forget_wiped(&mut self) {
        self.release();
    }

    /// Values in the slab.
    pub fn len(&self) -> usize {
        self.occupied as usize
    }

    /// Whether it holds no value.
    pub fn is_empty(&self) -> bool {
        self.occupied == 0
    }

    /// Whether this process is a forked child that finds the slots zeroed. One memory read.
    #[inline]
    pub fn was_wiped(&self) -> bool {
        // SAFETY: `marker` points into a page that is mapped as long as `marker` is `Some`.
        self.marker.is_some_and(|marker| unsafe { marker.read_volatile() } != ALIVE)
    }

    /// What the system granted, so far.
    pub fn protection(&self) -> Protection {
        self.protection
    }

    fn grow(&mut self) -> Result<(), OutOfMemory> {
        if self.marker.is_none() {
            let page = self.map(PAGE)?.cast::<u64>();
            // SAFETY: a fresh, writable, page-aligned mapping.
            unsafe { page.write_volatile(ALIVE) };
            self.marker = Some(page);
        }
        let first = self.chunks.len() * Self::SLOTS_PER_CHUNK;
        let (Ok(first), Ok(end)) =
            (u32::try_from(first), u32::try_from(first + Self::SLOTS_PER_CHUNK))
        else {
            return Err(OutOfMemory);
        };
        let chunk = self.map(CHUNK_BYTES)?;
        // SAFETY: the advice and the lock concern the fresh mapping alone, and change none of its bytes
        // in this process.
        self.protection.undumped &=
            unsafe { madvise(chunk.as_ptr(), CHUNK_BYTES, Advice::LinuxDontDump) }.is_ok();
        // SAFETY: as above. The marker, which holds no secret, is not locked: 64 KiB is all that an old
        // RLIMIT_MEMLOCK allows.
        self.protection.locked &= unsafe { mlock(chunk.as_ptr(), CHUNK_BYTES) }.is_ok();
        self.chunks.push(chunk.cast::<Slot<T>>());
        self.free.extend((first..end).rev());
        Ok(())
    }

    /// Fresh zero bytes, which a forked child finds zero again.
    fn map(&mut self, length: usize) -> Result<NonNull<c_void>, OutOfMemory> {
        // SAFETY: an anonymous mapping at an address of the kernel's choice replaces nothing.
        let memory = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        };
        let memory = memory.ok().and_then(NonNull::new).ok_or(OutOfMemory)?;
        // SAFETY: the advice concerns the fresh mapping alone, and changes none of its bytes in this
        // process.
        self.protection.wiped_on_fork &=
            unsafe { madvise(memory.as_ptr(), length, Advice::LinuxWipeOnFork) }.is_ok();
        Ok(memory)
    }

    /// A pointer into one of this slab's chunks; panics if there is no such chunk.
    fn slot(&self, index: u32) -> *mut Slot<T> {
        let (chunk, at) =
            (index as usize / Self::SLOTS_PER_CHUNK, index as usize % Self::SLOTS_PER_CHUNK);
        // SAFETY: `at` is below SLOTS_PER_CHUNK, so the offset stays in the chunk that it is added to.
        unsafe { self.chunks[chunk].as_ptr().add(at) }
    }

    fn release(&mut self) {
        let marker = self.marker.take().map(|marker| (marker.cast::<c_void>(), PAGE));
        let chunks = self.chunks.drain(..).map(|chunk| (chunk.cast::<c_void>(), CHUNK_BYTES));
        for (memory, length) in chunks.chain(marker) {
            // SAFETY: mapped by `map` with this length, and nothing points into it any more.
            let unmapped = unsafe { munmap(memory.as_ptr(), length) };
            debug_assert!(unmapped.is_ok());
        }
        self.free.clear();
        self.occupied = 0;
    }
}

impl<T> Default for LockedSlab<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Drop for LockedSlab<T> {
    fn drop(&mut self) {
        if self.was_wiped() { self.forget_wiped() } else { self.clear() }
    }
}

/// Words (8 bytes) of stack that deriving and unwrapping keys may use.
pub const DEEP: usize = 4096;
/// Words (8 bytes) of stack that one key schedule may use.
pub const SHALLOW: usize = 1024;

/// Runs `work` on a stretch of stack of which `WORDS` words are overwritten with zero bytes
/// afterwards, also if it panics: what its callees left there of keys (arguments, spilled registers,
/// hash buffers) does not stay. What `work` returns should be no secret, or one on the heap or in a
/// slab.
#[inline(never)]
pub fn with_scrubbed_stack<const WORDS: usize, R>(work: impl FnOnce() -> R) -> R {
    struct ScrubOnDrop<const WORDS: usize>;
    impl<const WORDS: usize> Drop for ScrubOnDrop<WORDS> {
        fn drop(&mut self) {
            scrub::<WORDS>();
        }
    }
    let _also_on_panic = ScrubOnDrop::<WORDS>;
    apart(work)
}

#[inline(never)]
fn apart<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[inline(never)]
fn scrub<const WORDS: usize>() {
    // Words, not bytes: each is a store of its own, and a look-up of a key waits for them.
    let mut stack = [0u64; WORDS];
    stack.zeroize();
    std::hint::black_box(&stack);
}
