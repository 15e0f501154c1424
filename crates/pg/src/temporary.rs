//! The session's temporary schema.

use fieldcrypt_error::Error;
use pgrx::pg_sys;

use super::catalogs::{
    Anum_pg_depend_refclassid, Anum_pg_depend_refobjid, DependReferenceIndexId, DependRelationId,
};
use super::scan::{self, oid_key};

/// Whether anything is in it: a table, a view, a function, a type, ... Sessions that never had a temporary object have
/// no such schema.
pub fn has_objects() -> Result<bool, Error> {
    let (mut schema, mut for_toast) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
    // SAFETY: writes the two numbers.
    unsafe { pg_sys::GetTempNamespaceState(&mut schema, &mut for_toast) };
    if schema == pg_sys::InvalidOid {
        return Ok(false);
    }
    // What is in a schema depends on it.
    let mut keys = [
        oid_key(Anum_pg_depend_refclassid, pg_sys::NamespaceRelationId),
        oid_key(Anum_pg_depend_refobjid, schema),
    ];
    let found = scan::first(DependRelationId, DependReferenceIndexId, &mut keys, |_| Ok(()))?;
    Ok(found.is_some())
}
