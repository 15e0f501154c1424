//! Memory for a while.

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

/// A node of Postgres's, zeroed and tagged, in the current memory context.
///
/// # Safety
///
/// `T` is the structure of that tag.
pub(super) unsafe fn node<T>(tag: pg_sys::NodeTag) -> *mut T {
    // SAFETY: every node begins with its tag; all-zero is how Postgres makes them.
    unsafe {
        let node = pg_sys::palloc0(size_of::<T>());
        *node.cast::<pg_sys::NodeTag>() = tag;
        node.cast()
    }
}
