//! Memory for a while.

use pgrx::pg_sys;

/// Runs `work` in a memory context of its own, which is deleted after it. What it gives must not point
/// in there.
pub fn scratch<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: makes a child of the current context, switches to it and back. After an error the abort
    // deletes it with its parent.
    unsafe {
        let context = pg_sys::AllocSetContextCreateInternal(
            pg_sys::CurrentMemoryContext,
            c"pg_fieldcrypt scratch".as_ptr(),
            pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
        );
        let outer = pg_sys::MemoryContextSwitchTo(context);
        let result = work();
        pg_sys::MemoryContextSwitchTo(outer);
        pg_sys::MemoryContextDelete(context);
        result
    }
}
