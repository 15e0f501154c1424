//! Every line that differs between PostgreSQL versions.

use pgrx::pg_sys;

/// Reserves the prefix `fieldcrypt.`, so that a misspelt setting is an error.
pub fn reserve_setting_prefix() {
    // SAFETY: the class name is a static C string.
    unsafe {
        #[cfg(feature = "pg14")]
        pg_sys::EmitWarningsOnPlaceholders(c"fieldcrypt".as_ptr());
        #[cfg(not(feature = "pg14"))]
        pg_sys::MarkGUCPrefixReserved(c"fieldcrypt".as_ptr());
    }
}

/// An attribute of a row type.
///
/// # Safety
///
/// The descriptor must be valid and have more attributes than `index`.
pub unsafe fn attribute(
    descriptor: pg_sys::TupleDesc,
    index: usize,
) -> *const pg_sys::FormData_pg_attribute {
    // SAFETY: by the contract.
    unsafe {
        #[cfg(feature = "pg18")]
        return pg_sys::TupleDescAttr(descriptor, index as i32);
        #[cfg(not(feature = "pg18"))]
        return (*descriptor).attrs.as_ptr().add(index);
    }
}
