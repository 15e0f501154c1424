//! The process, and where it is.

use std::ffi::CStr;

use pgrx::pg_sys;

/// This process.
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

/// The name of a function, without its schema, in the database's encoding.
pub fn function_name(function: pg_sys::Oid) -> Vec<u8> {
    // SAFETY: a catalog look-up that answers NULL if there is none; the name is copied.
    unsafe {
        let name = pg_sys::get_func_name(function);
        if name.is_null() { Vec::new() } else { CStr::from_ptr(name).to_bytes().to_vec() }
    }
}
