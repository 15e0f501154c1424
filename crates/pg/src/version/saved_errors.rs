//! Errors that input functions save for their caller, from PostgreSQL 16 on.

use std::ffi::CStr;

use pgrx::pg_sys;

/// Whether a function is asked to save an error about its argument for its caller instead of raising it.
///
/// # Safety
///
/// Postgres's own call structure.
pub(in super::super) unsafe fn saves_errors(call: pg_sys::FunctionCallInfo) -> bool {
    #[cfg(feature = "pg15")]
    {
        let _ = call;
        false
    }
    // SAFETY: by the contract: null or a node.
    #[cfg(not(feature = "pg15"))]
    unsafe {
        let context = (*call).context;
        !context.is_null() && (*context).type_ == pg_sys::NodeTag::T_ErrorSaveContext
    }
}

/// Begins an error that is saved; `false` if its texts are not wanted. After [`saves_errors`].
///
/// # Safety
///
/// The node is an `ErrorSaveContext`. An error may leave by `longjmp`.
pub(in super::super) unsafe fn start_saving(context: *mut pg_sys::Node) -> bool {
    #[cfg(feature = "pg15")]
    {
        let _ = context;
        false
    }
    // SAFETY: by the contract.
    #[cfg(not(feature = "pg15"))]
    unsafe {
        unguarded::errsave_start(context, std::ptr::null())
    }
}

/// Ends it.
///
/// # Safety
///
/// As for [`start_saving`], which has answered `true`.
pub(in super::super) unsafe fn finish_saving(context: *mut pg_sys::Node, file: &CStr, line: i32) {
    #[cfg(feature = "pg15")]
    let _ = (context, file, line);
    // SAFETY: by the contract.
    #[cfg(not(feature = "pg15"))]
    unsafe {
        unguarded::errsave_finish(context, file.as_ptr(), line, file.as_ptr());
    }
}

#[cfg(not(feature = "pg15"))]
mod unguarded {
    use std::ffi::c_char;

    use pgrx::pg_sys;
    unsafe extern "C-unwind" {
        pub fn errsave_start(context: *mut pg_sys::Node, domain: *const c_char) -> bool;
        pub fn errsave_finish(
            context: *mut pg_sys::Node,
            file: *const c_char,
            line: i32,
            function: *const c_char,
        );
    }
}
