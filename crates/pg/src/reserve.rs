//! Memory when the system gives no more (`vm.overcommit_memory = 2`, `ulimit -v`).
//!
//! Rust ends a process that asks in vain, by a signal, and then the postmaster restarts the cluster. So a process
//! has some memory in reserve: what is small comes from there, and an error follows at the next place where one can
//! be raised. What is too large for the reserve ends the session, and nobody else's, by a FATAL error. To raise an
//! error at once is not possible: an allocator must neither unwind nor jump past its callers, whose values would be
//! half made. To end the process is, as it is in any of Postgres's functions.
//!
//! Whoever can do without asks in [`may_fail`], or for [`room`] ahead.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize};

use fieldcrypt_error::Error;
use pgrx::pg_sys;

use super::report;

/// What the rest of a call may need until its error can be raised.
const SIZE: usize = 256 << 10;
/// The part of it that only the end of the session uses.
const LAST: usize = 64 << 10;

/// Pages that nobody touches cost nothing.
#[repr(align(4096))]
struct Reserve(UnsafeCell<[u8; SIZE]>);

// SAFETY: each piece of it has one owner, who got it under the lock.
unsafe impl Sync for Reserve {}

static RESERVE: Reserve = Reserve(UnsafeCell::new([0; SIZE]));
static IS_LOCKED: AtomicBool = AtomicBool::new(false);
/// Where the free part begins, and how many pieces before it are in use.
static FREE_FROM: AtomicUsize = AtomicUsize::new(0);
static PIECES: AtomicUsize = AtomicUsize::new(0);

static IS_SHORT: AtomicBool = AtomicBool::new(false);
static MAY_FAIL: AtomicBool = AtomicBool::new(false);
static IS_ENDING: AtomicBool = AtomicBool::new(false);

/// Whether memory came out of the reserve since the last error or transaction.
#[inline]
pub fn is_short() -> bool {
    IS_SHORT.load(Relaxed)
}

/// That was told, or did no harm.
pub fn forget_shortage() {
    IS_SHORT.store(false, Relaxed);
}

/// What follows when the reserve was needed.
pub const OUT_OF_MEMORY: Error = Error::OutOfMemory { what: "what a function needs" };

/// Runs what takes no for an answer, by `try_reserve` and its like: there a large request fails, and ends nothing.
pub fn may_fail<R>(work: impl FnOnce() -> R) -> R {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            MAY_FAIL.store(self.0, Relaxed);
        }
    }
    let _before = Before(MAY_FAIL.swap(true, Relaxed));
    work()
}

/// An error unless so many bytes can be had: asked before something is made whose size the caller chose.
pub fn room(bytes: usize, what: &'static str) -> Result<(), Error> {
    /// Less is always there, as far as one can tell.
    const SMALL: usize = 64 << 10;
    if bytes <= SMALL {
        return Ok(());
    }
    let mut probe = Vec::<u8>::new();
    may_fail(|| probe.try_reserve_exact(bytes)).map_err(|_| Error::OutOfMemory { what })?;
    std::hint::black_box(probe.as_mut_ptr());
    Ok(())
}

/// Runs `work`, in which an error of Postgres's about memory has room to be dealt with. pgrx copies errors into the
/// context that was current: where that can't grow any more, copying fails like what it tells of, again and again, until
/// Postgres has no place left for errors and ends the server.
#[inline]
pub(super) fn with_cushion<R>(work: impl FnOnce() -> R) -> R {
    struct Before(*mut pg_sys::ErrorContextCallback);
    impl Drop for Before {
        fn drop(&mut self) {
            // SAFETY: a variable of the process, as it was.
            unsafe { pg_sys::error_context_stack = self.0 };
        }
    }
    // SAFETY: as every function of Postgres that adds to the context of errors: what is added lives until it is taken
    // off again, and an error that jumps past this puts the stack back to before it.
    unsafe {
        let before = Before(pg_sys::error_context_stack);
        let mut context = pg_sys::ErrorContextCallback {
            previous: before.0,
            callback: Some(at_error),
            arg: std::ptr::null_mut(),
        };
        pg_sys::error_context_stack = &raw mut context;
        let result = work();
        drop(before);
        result
    }
}

/// An error's context that adds nothing to it, with the same room for what deals with it.
pub(super) fn no_context() -> *mut pg_sys::ErrorContextCallback {
    struct Empty(UnsafeCell<pg_sys::ErrorContextCallback>);
    // SAFETY: Postgres only reads it.
    unsafe impl Sync for Empty {}
    static EMPTY: Empty = Empty(UnsafeCell::new(pg_sys::ErrorContextCallback {
        previous: std::ptr::null_mut(),
        callback: Some(at_error),
        arg: std::ptr::null_mut(),
    }));
    EMPTY.0.get()
}

/// The same while a line of the log is written. An error within another is given no context, so that `at_error` is not
/// called. But first Postgres clears what errors are made in, and says so.
pub(super) fn with_cushion_in_log<R>(work: impl FnOnce() -> R) -> R {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            IS_IN_LOG.store(self.0, Relaxed);
        }
    }
    let _before = Before(IS_IN_LOG.swap(true, Relaxed));
    // SAFETY: the context lives as long as the process, and so does what is registered, which is no more in use when the
    // callback has been called.
    unsafe {
        if !pg_sys::ErrorContext.is_null() && !IS_WATCHED.swap(true, Relaxed) {
            let watch = WATCH.0.get();
            (*watch).func = Some(at_clearing);
            pg_sys::MemoryContextRegisterResetCallback(pg_sys::ErrorContext, watch);
        }
    }
    work()
}

struct Watch(UnsafeCell<pg_sys::MemoryContextCallback>);

// SAFETY: written to only by `with_cushion_in_log`, of the only thread.
unsafe impl Sync for Watch {}

static WATCH: Watch = Watch(UnsafeCell::new(pg_sys::MemoryContextCallback {
    func: None,
    arg: std::ptr::null_mut(),
    next: std::ptr::null_mut(),
}));
static IS_WATCHED: AtomicBool = AtomicBool::new(false);
static IS_IN_LOG: AtomicBool = AtomicBool::new(false);

unsafe extern "C-unwind" fn at_clearing(_: *mut c_void) {
    IS_WATCHED.store(false, Relaxed);
    if IS_IN_LOG.load(Relaxed) {
        empty_cushion();
    }
}

/// As much as a memory context asks for that has grown to its largest blocks, twice. Nobody touches it.
const CUSHION: Layout = match Layout::from_size_align(2 << 20, 16) {
    Ok(layout) => layout,
    Err(_) => Layout::new::<u8>(),
};

static CUSHION_AT: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());

/// Called when the library is loaded and when a transaction, or a part of one, ends.
pub(super) fn fill_cushion() {
    if CUSHION_AT.load(Relaxed).is_null() {
        // SAFETY: a layout that is not empty.
        CUSHION_AT.store(unsafe { System.alloc(CUSHION) }, Relaxed);
    }
}

/// Whether an error about memory could be dealt with. Where it can't, nothing is begun in which there may be one: the
/// server would end by it.
#[inline]
pub fn has_cushion() -> bool {
    if CUSHION_AT.load(Relaxed).is_null() {
        fill_cushion();
    }
    !CUSHION_AT.load(Relaxed).is_null()
}

/// Called while an error is made.
unsafe extern "C-unwind" fn at_error(_: *mut c_void) {
    unsafe extern "C-unwind" {
        fn geterrcode() -> c_int;
    }
    // SAFETY: reads the error that is being made.
    if unsafe { geterrcode() } == report::OUT_OF_MEMORY {
        empty_cushion();
    }
}

fn empty_cushion() {
    let cushion = CUSHION_AT.swap(std::ptr::null_mut(), Relaxed);
    if !cushion.is_null() {
        // SAFETY: of that layout, and taken from its place.
        unsafe { System.dealloc(cushion, CUSHION) };
    }
}

struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

// SAFETY: what the system's allocator gives, or a piece of the reserve of the size and alignment that was asked for,
// which belongs to nobody else until it is given back. Nothing unwinds: `end_session` does not come back.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by the contract.
        let memory = unsafe { System.alloc(layout) };
        if memory.is_null() { without_system(layout) } else { memory }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by the contract.
        let memory = unsafe { System.alloc_zeroed(layout) };
        if !memory.is_null() {
            return memory;
        }
        let memory = without_system(layout);
        if !memory.is_null() {
            // SAFETY: a piece of that size.
            unsafe { memory.write_bytes(0, layout.size()) };
        }
        memory
    }

    #[inline]
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        match offset_of(memory) {
            Some(offset) => give_back(offset, layout.size()),
            // SAFETY: by the contract; what is not of the reserve is the system's.
            None => unsafe { System.dealloc(memory, layout) },
        }
    }

    #[inline]
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: by the contract. A layout of the new size is valid by it, too; the new piece is another than the
        // old one, which stays as it is if there is none.
        unsafe {
            if offset_of(memory).is_none() {
                let moved = System.realloc(memory, layout, new_size);
                if !moved.is_null() {
                    return moved;
                }
            }
            let moved = self.alloc(Layout::from_size_align_unchecked(new_size, layout.align()));
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(memory, layout.size().min(new_size));
                self.dealloc(memory, layout);
            }
            moved
        }
    }
}

/// From the reserve. Null only where no is an answer, or where there is no session to be ended.
#[cold]
fn without_system(layout: Layout) -> *mut u8 {
    let is_ending = IS_ENDING.load(Relaxed);
    let end = if is_ending { SIZE } else { SIZE - LAST };
    if let Some(piece) = take(layout, end) {
        IS_SHORT.store(true, Relaxed);
        return piece;
    }
    // SAFETY: reads a variable of the process.
    let is_session = unsafe { pg_sys::IsUnderPostmaster };
    if is_ending || MAY_FAIL.load(Relaxed) || !is_session {
        return std::ptr::null_mut();
    }
    IS_ENDING.store(true, Relaxed);
    report::end_session(layout.size())
}

#[inline]
fn offset_of(memory: *mut u8) -> Option<usize> {
    let offset = memory.addr().wrapping_sub(RESERVE.0.get().addr());
    (offset < SIZE).then_some(offset)
}

fn take(layout: Layout, end: usize) -> Option<*mut u8> {
    locked(|| {
        let base = RESERVE.0.get().addr();
        let start =
            (base + FREE_FROM.load(Relaxed)).checked_next_multiple_of(layout.align())? - base;
        let after = start.checked_add(layout.size()).filter(|after| *after <= end)?;
        FREE_FROM.store(after, Relaxed);
        PIECES.fetch_add(1, Relaxed);
        // SAFETY: inside of the reserve.
        Some(unsafe { RESERVE.0.get().cast::<u8>().add(start) })
    })
}

/// The last piece is free again at once, the others with the last of them.
fn give_back(offset: usize, size: usize) {
    locked(|| {
        if PIECES.fetch_sub(1, Relaxed) == 1 {
            FREE_FROM.store(0, Relaxed);
        } else if FREE_FROM.load(Relaxed) == offset + size {
            FREE_FROM.store(offset, Relaxed);
        }
    });
}

/// A process of the server has one thread, and nothing in here can be interrupted by more of it.
fn locked<R>(work: impl FnOnce() -> R) -> R {
    while IS_LOCKED.swap(true, Acquire) {
        std::hint::spin_loop();
    }
    let result = work();
    IS_LOCKED.store(false, Release);
    result
}
