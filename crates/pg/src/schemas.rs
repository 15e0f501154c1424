//! The two schemas of the extension, known by their names.

use std::ffi::CStr;

use pgrx::pg_sys::{self, Oid};

/// What users call and read.
pub const USERS: &CStr = c"fieldcrypt";

/// What that is made of.
pub const INTERNAL: &CStr = c"fieldcrypt_internal";

/// Both.
pub const ALL: [&CStr; 2] = [USERS, INTERNAL];

/// Whether both are there by their names, and this table of the users' one. What calls it by name fails otherwise.
pub fn hold(table: &CStr) -> bool {
    // SAFETY: a catalog look-up by name that answers InvalidOid if there is none.
    let is_table = |schema| unsafe { pg_sys::get_relname_relid(table.as_ptr(), schema) };
    oid(INTERNAL).is_some() && oid(USERS).map(is_table).is_some_and(|oid| oid != pg_sys::InvalidOid)
}

/// The schema of this name, if it is there.
pub fn oid(name: &CStr) -> Option<Oid> {
    // SAFETY: a catalog look-up by name that answers InvalidOid if there is none.
    let oid = unsafe { pg_sys::get_namespace_oid(name.as_ptr(), true) };
    (oid != pg_sys::InvalidOid).then_some(oid)
}
