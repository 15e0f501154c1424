//! Memory for a while.

use std::mem::MaybeUninit;

use pgrx::pg_sys;

/// A memory context that is emptied after each use. After an error the abort deletes it with its
/// parent, the context that was current when it was made.
pub struct Scratch(pg_sys::MemoryContext);

impl Scratch {
    /// Makes one.
    #[expect(clippy::new_without_default, reason = "it is a child of the context that is current")]
    pub fn new() -> Self {
        // SAFETY: makes a child of the current context.
        Self(unsafe {
            pg_sys::AllocSetContextCreateInternal(
                pg_sys::CurrentMemoryContext,
                c"pg_fieldcrypt scratch".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            )
        })
    }

    /// Runs `work` in it and empties it. What `work` gives must not point in there.
    pub fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        // SAFETY: the context lives as long as this; switches to it and back.
        unsafe {
            let outer = pg_sys::MemoryContextSwitchTo(self.0);
            let result = work();
            pg_sys::MemoryContextSwitchTo(outer);
            pg_sys::MemoryContextReset(self.0);
            result
        }
    }

    /// Gives it back.
    pub fn end(self) {
        // SAFETY: made by `new`, deleted once.
        unsafe { pg_sys::MemoryContextDelete(self.0) }
    }
}

/// What is added to a structure that Postgres writes to. The server may be a later minor release than the one whose headers
/// this was built with, and such have made structures longer: `ResultRelInfo` in 15.9, 16.5 and 17.1. What is new lies at the
/// end, and is zero where nobody sets it.
const ROOM: usize = 256;

/// A node of Postgres's, zeroed and tagged, in the current memory context.
///
/// # Safety
///
/// `T` is the structure of that tag.
pub(super) unsafe fn node<T>(tag: pg_sys::NodeTag) -> *mut T {
    // SAFETY: every node begins with its tag; all-zero is how Postgres makes them.
    unsafe {
        let node = zeroed::<T>();
        *node.cast::<pg_sys::NodeTag>() = tag;
        node
    }
}

/// A structure of Postgres's that is no node, zeroed, in the current memory context.
///
/// # Safety
///
/// All-zero is how its functions take it.
pub(super) unsafe fn zeroed<T>() -> *mut T {
    // SAFETY: memory of the current context, of more than the size.
    unsafe { pg_sys::palloc0(size_of::<T>() + ROOM).cast() }
}

/// A structure that a function of Postgres's fills, for its caller's frame.
#[repr(C)]
pub(super) struct Filled<T>(MaybeUninit<T>, [u8; ROOM]);

impl<T> Filled<T> {
    /// All zero.
    pub(super) const fn new() -> Self {
        Self(MaybeUninit::zeroed(), [0; ROOM])
    }

    /// Where to write to. It reaches to the end of what is here, not of `T`.
    pub(super) const fn place(&mut self) -> *mut T {
        (&raw mut *self).cast()
    }
}
