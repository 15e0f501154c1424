//! The session's temporary schema.

use fieldcrypt_error::Error;
use pgrx::pg_sys::{self, Oid};

use super::scan::{self, oid_key};

const PG_DEPEND: Oid = Oid::from_u32(2608);
const PG_DEPEND_BY_REFERENCE: Oid = Oid::from_u32(2674);

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
    let mut keys = [oid_key(4, pg_sys::NamespaceRelationId), oid_key(5, schema)];
    let found = scan::first(PG_DEPEND, PG_DEPEND_BY_REFERENCE, &mut keys, |_| Ok(()))?;
    Ok(found.is_some())
}
