//! The process, and where it is.

use std::ffi::CStr;

use pgrx::pg_sys;

/// This process.
#[inline]
pub fn process() -> i32 {
    // SAFETY: reads a variable of the process.
    unsafe { pg_sys::MyProcPid }
}

/// The oid of the session's database.
pub fn database() -> u32 {
    // SAFETY: reads a variable of the backend.
    unsafe { pg_sys::MyDatabaseId }.to_u32()
}

/// The data directory.
pub fn data_directory() -> Option<std::path::PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    // SAFETY: set by the postmaster before any backend exists, never freed.
    unsafe {
        (!pg_sys::DataDir.is_null()).then(|| {
            std::path::PathBuf::from(std::ffi::OsStr::from_bytes(
                CStr::from_ptr(pg_sys::DataDir).to_bytes(),
            ))
        })
    }
}
