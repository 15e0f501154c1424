//! `PG_TRY` and `PG_FINALLY` of `elog.h`, for hooks that the errors of every statement pass through.
//!
//! They must pass unchanged. pgrx's guards would raise another error in their place: without the position,
//! table and constraint of this one, and without what it hides, so that the log would show statements that
//! hold plaintext.

use pgrx::pg_sys;

/// Runs `work`, then `after`, whether `work` came to its end (`true`) or raised an error, which goes on
/// after that.
///
/// Nothing that needs dropping may live in `work` or in the caller's frames: an error leaves them by
/// `longjmp`. `after` raises nothing.
pub fn finally(work: &mut dyn FnMut(), after: &mut dyn FnMut(bool)) {
    // SAFETY: what `PG_TRY`, `PG_FINALLY` and `PG_END_TRY` expand to. What changes after the jump point is
    // read from memory only.
    unsafe {
        let exceptions = pg_sys::PG_exception_stack;
        let contexts = pg_sys::error_context_stack;
        let jumped = cee_scape::call_with_sigsetjmp(false, |buffer| {
            pg_sys::PG_exception_stack = std::ptr::from_ref(buffer).cast_mut().cast();
            work();
            0
        });
        pg_sys::PG_exception_stack = exceptions;
        pg_sys::error_context_stack = contexts;
        after(jumped == 0);
        if jumped != 0 {
            pg_re_throw();
        }
    }
}

unsafe extern "C-unwind" {
    fn pg_re_throw() -> !;
}
