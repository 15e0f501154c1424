//! Roles of the session, by name.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::encoding;
use super::heap::{Access, Table};
use fieldcrypt_error::Error;

/// session_user: the role that logged in, or what a superuser's SET SESSION AUTHORIZATION made of it.
pub fn session_user() -> Vec<u8> {
    // SAFETY: reads a variable of the backend.
    role_name(unsafe { pg_sys::GetSessionUserId() })
}

/// The role that the user has chosen with SET ROLE, whatever SECURITY DEFINER functions are running.
pub fn outer_role() -> Vec<u8> {
    // SAFETY: reads a variable of the backend.
    role_name(unsafe { pg_sys::GetOuterUserId() })
}

/// Functions that only read a variable, without pgrx's guard against errors, which on the row path would cost more
/// than they do.
mod unguarded {
    use pgrx::pg_sys::Oid;

    unsafe extern "C" {
        pub fn GetSessionUserId() -> Oid;
        pub fn GetOuterUserId() -> Oid;
    }
}

/// Both, as one number that is another one when one of them is another. Never 0.
#[inline]
pub fn session_number() -> u64 {
    // SAFETY: read variables of the backend.
    let (session_user, outer_role) =
        unsafe { (unguarded::GetSessionUserId(), unguarded::GetOuterUserId()) };
    u64::from(session_user.to_u32()) << 32 | u64::from(outer_role.to_u32())
}

/// Both, by number.
pub(super) fn session_oids() -> (pg_sys::Oid, pg_sys::Oid) {
    // SAFETY: read variables of the backend.
    unsafe { (pg_sys::GetSessionUserId(), pg_sys::GetOuterUserId()) }
}

/// The role that logged in, whatever SET SESSION AUTHORIZATION a superuser ran since.
pub fn login_role() -> Vec<u8> {
    // SAFETY: reads a variable of the backend.
    role_name(unsafe { pg_sys::GetAuthenticatedUserId() })
}

/// Refuses whoever has not the rights of a relation's owner; gives that.
pub fn refuse_unless_owner(relation: pg_sys::Oid) -> Result<pg_sys::Oid, Error> {
    owner_with_rights(relation).map(|(owner, _)| owner)
}

/// The same, and whoever has logged in as a superuser, unless the owner is one, too: what the table computes would be computed
/// with a superuser's rights, or could take them back with RESET ROLE.
pub fn refuse_unless_owner_by_himself(relation: pg_sys::Oid) -> Result<(), Error> {
    let (owner, name) = owner_with_rights(relation)?;
    if is_superuser_at(owner) {
        let owner = encoding::lossy(&role_name(owner));
        return Err(Error::TableOfOther { table: encoding::lossy(&name), owner });
    }
    Ok(())
}

/// Whether the role whose rights count now is a superuser's.
pub fn is_superuser() -> bool {
    // SAFETY: reads a variable of the backend, and a catalog.
    unsafe { pg_sys::superuser() }
}

/// Whether the session can have a superuser's rights, and a table's owner has not.
pub fn is_superuser_at(owner: pg_sys::Oid) -> bool {
    // SAFETY: read variables of the backend, and look at the rights of roles.
    unsafe {
        let may_be =
            [pg_sys::GetUserId(), pg_sys::GetSessionUserId(), pg_sys::GetAuthenticatedUserId()];
        !pg_sys::superuser_arg(owner) && may_be.into_iter().any(|role| pg_sys::superuser_arg(role))
    }
}

/// The owner of a relation, whose rights the role has that counts now, and the relation's name.
fn owner_with_rights(relation: pg_sys::Oid) -> Result<(pg_sys::Oid, Vec<u8>), Error> {
    let Some(table) = Table::open(relation, Access::Read) else {
        return Err(Error::NotScannable { problem: "gone" });
    };
    let (owner, name) = (table.owner(), table.name());
    table.close();
    if has_rights_of(owner) {
        return Ok((owner, name));
    }
    Err(Error::NotTableOwner { table: encoding::lossy(&name) })
}

/// Whether the role whose rights count now has those of another.
pub fn has_rights_of(role: pg_sys::Oid) -> bool {
    // SAFETY: reads a variable of the backend, and catalogs.
    unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), role) }
}

/// A role's name, in the database's encoding; empty if there is none.
fn role_name(role: pg_sys::Oid) -> Vec<u8> {
    // SAFETY: looks a role up by oid; the name is copied out of the palloc'd string.
    unsafe {
        let name = pg_sys::GetUserNameFromId(role, true);
        if name.is_null() {
            Vec::new()
        } else {
            encoding::storable(CStr::from_ptr(name).to_bytes())
        }
    }
}
