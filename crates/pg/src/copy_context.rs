//! Where a COPY FROM is that fails by an error of the extension: relation, line and column, which the client needs to
//! find what to mend. Postgres's own callback tells them together with the value, or with the whole line.

use std::ffi::{CStr, c_char, c_int, c_void};

use fieldcrypt_sql_text::messages::copy_place;
use pgrx::pg_sys;

unsafe extern "C-unwind" {
    fn CopyFromErrorCallback(copy: *mut c_void);
    fn GetErrorContextStack() -> *mut c_char;
    fn set_errcontext_domain(domain: *const c_char) -> c_int;
    fn errcontext_msg(format: *const c_char, ...) -> c_int;
}

/// Gives the error that is being made its context, as `errfinish` does, and leaves nothing for that to add: COPY
/// without its data, and unless only that is wanted, all else as it is. Does nothing if no COPY FROM is running.
///
/// # Safety
///
/// Between `errstart` and `errfinish` of an error, which end the callbacks' frames. A callback may leave by `longjmp`:
/// nothing that needs dropping is alive here or in the callers' frames.
pub(super) unsafe fn tell(is_only_copy_wanted: bool) {
    // SAFETY: the entries lie in frames below this one, and are valid as long as they are in the list. Each callback
    // is called with its own argument, in the memory context in which `errfinish` calls it.
    unsafe {
        let stack = pg_sys::error_context_stack;
        if !entries(stack).any(|entry| is_copy(entry)) {
            return;
        }
        let caller = pg_sys::CurrentMemoryContext;
        pg_sys::CurrentMemoryContext = pg_sys::ErrorContext;
        for entry in entries(stack) {
            if is_copy(entry) {
                set_errcontext_domain(std::ptr::null());
                errcontext_msg(c"%s".as_ptr(), place(entry));
            } else if !is_only_copy_wanted && let Some(callback) = (*entry).callback {
                callback((*entry).arg);
            }
        }
        pg_sys::CurrentMemoryContext = caller;
        // What handles the error sets it anew, as for any error.
        pg_sys::error_context_stack = std::ptr::null_mut();
    }
}

/// Overwrites the text of a value that was refused without an error, if a COPY FROM is running that goes on: it would tell it
/// with the line that it skips, or with the last of too many. The text is COPY's own, or a copy of a part of it.
///
/// # Safety
///
/// A C string that may be written to, or NULL.
pub(super) unsafe fn hide(text: *mut c_char) {
    // SAFETY: by the contract; as in `tell`.
    unsafe {
        if text.is_null() || !entries(pg_sys::error_context_stack).any(|entry| is_copy(entry)) {
            return;
        }
        let length = CStr::from_ptr(text).count_bytes();
        std::ptr::write_bytes(text, b'*', length.min(3));
        *text.add(length.min(3)) = 0;
    }
}

type Entry = *mut pg_sys::ErrorContextCallback;

/// # Safety
///
/// The list is valid.
unsafe fn entries(stack: Entry) -> impl Iterator<Item = Entry> {
    let there = |entry: Entry| (!entry.is_null()).then_some(entry);
    // SAFETY: by the contract.
    std::iter::successors(there(stack), move |entry| there(unsafe { (**entry).previous }))
}

/// # Safety
///
/// The entry is valid.
unsafe fn is_copy(entry: Entry) -> bool {
    // SAFETY: by the contract.
    let callback = unsafe { (*entry).callback };
    callback.is_some_and(|callback| {
        std::ptr::eq(callback as *const (), CopyFromErrorCallback as *const ())
    })
}

/// `COPY patients, line 3, column ssn`, in the language of the server's messages.
///
/// # Safety
///
/// The entry is of a COPY.
unsafe fn place(entry: Entry) -> *const c_char {
    // SAFETY: by the contract. The entry stands alone while its text is asked for, which is made for this.
    unsafe {
        let mut alone = pg_sys::ErrorContextCallback {
            previous: std::ptr::null_mut(),
            callback: (*entry).callback,
            arg: (*entry).arg,
        };
        let stack = pg_sys::error_context_stack;
        pg_sys::error_context_stack = &raw mut alone;
        let text = GetErrorContextStack();
        pg_sys::error_context_stack = stack;
        if text.is_null() {
            return c"COPY".as_ptr();
        }
        let bytes = CStr::from_ptr(text).to_bytes();
        *text.add(copy_place(bytes).len()) = 0;
        text
    }
}
