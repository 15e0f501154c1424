//! Settings, read where every nanosecond counts or before they are defined.

use std::ffi::CStr;

use pgrx::guc::{GucEnum, GucSetting};
use pgrx::pg_sys;

/// The place of a setting's value among those it may have.
#[inline]
pub fn ordinal<T: GucEnum>(setting: &'static GucSetting<T>) -> i32 {
    // SAFETY: a plain variable that Postgres writes to; backends have one thread.
    unsafe { *setting.as_ptr() }
}

/// Whether somebody has set what the library, which is not preloaded, is about to define.
pub fn is_placeholder(name: &'static CStr) -> bool {
    // SAFETY: a look-up by name whose result is only compared.
    unsafe {
        !pg_sys::process_shared_preload_libraries_in_progress
            && !pg_sys::GetConfigOption(name.as_ptr(), true, false).is_null()
    }
}
