//! The extension's own relations and types, looked up by name once.

use std::cell::Cell;
use std::ffi::{CStr, c_int};

use fieldcrypt_error::Error;
use pgrx::pg_sys::{self, Datum, Oid};

use super::{encoding, invalidations, schemas};

/// Whether who is at it may read a table, all of it.
pub fn may_read(relation: Oid) -> bool {
    // SAFETY: a look-up of rights.
    unsafe {
        pg_sys::pg_class_aclcheck(
            relation,
            pg_sys::GetUserId(),
            pg_sys::ACL_SELECT as pg_sys::AclMode,
        ) == pg_sys::AclResult::ACLCHECK_OK
    }
}

/// A name as SQL.
pub fn quoted(name: &[u8]) -> String {
    let Ok(name) = std::ffi::CString::new(name) else { return String::new() };
    // SAFETY: a C string; what is given back is it, or a palloc'd one.
    encoding::lossy(unsafe { CStr::from_ptr(pg_sys::quote_identifier(name.as_ptr())) }.to_bytes())
}

/// The role that owns the key table, and with it the extension.
pub fn owner_of_keys() -> Result<Oid, Error> {
    let relations = Relations::resolve()?;
    // SAFETY: opens the relation with a lock, if it is there still, reads its catalog row, closes it.
    unsafe {
        let relation =
            pg_sys::try_relation_open(relations.keys, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        if relation.is_null() {
            return Err(Error::NotInstalled);
        }
        let owner = (*(*relation).rd_rel).relowner;
        pg_sys::relation_close(relation, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        Ok(owner)
    }
}

/// The table whose object locks tell which runs of re-encryption are under way.
pub fn runs_relation() -> Result<Oid, Error> {
    Ok(Relations::resolve()?.runs)
}

/// The type `fieldcrypt.encrypted`.
pub fn encrypted_type() -> Result<Oid, Error> {
    Ok(Relations::resolve()?.encrypted_type)
}

/// The types of which all values are ciphertext: that, and `fieldcrypt.encrypted_text`, which a database that was not
/// updated yet does not have.
pub fn value_types() -> Result<[Oid; 2], Error> {
    let relations = Relations::resolve()?;
    Ok([relations.encrypted_type, relations.encrypted_text_type])
}

/// A type in the schema that users know, if it is there.
pub(super) fn type_named(name: &'static CStr) -> Option<Oid> {
    let schema = schemas::oid(schemas::USERS)?;
    // SAFETY: a catalog look-up by name and schema that answers InvalidOid if there is none.
    valid(unsafe {
        pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::TYPENAMENSP as c_int,
            pg_sys::Anum_pg_type_oid as pg_sys::AttrNumber,
            Datum::from(name.as_ptr()),
            Datum::from(schema),
            Datum::null(),
            Datum::null(),
        )
    })
}

/// The table of keys, if it is there and the extension's: also where its indexes no longer are.
pub(super) fn key_table() -> Option<Oid> {
    let schema = schemas::oid(schemas::USERS)?;
    // SAFETY: catalog look-ups that answer InvalidOid if there is none.
    unsafe {
        let table = valid(pg_sys::get_relname_relid(c"encryption_keys".as_ptr(), schema))?;
        let extension = valid(pg_sys::getExtensionOfObject(pg_sys::RelationRelationId, table))?;
        (extension == pg_sys::get_extension_oid(c"pg_fieldcrypt".as_ptr(), true)).then_some(table)
    }
}

#[derive(Clone, Copy)]
pub(super) struct Relations {
    pub(super) keys: Oid,
    pub(super) keys_by_id: Oid,
    pub(super) active_keys: Oid,
    pub(super) keys_by_version: Oid,
    pub(super) master_keys: Oid,
    pub(super) encrypted_type: Oid,
    /// The other one, if there is none of it.
    pub(super) encrypted_text_type: Oid,
    pub(super) log: Oid,
    pub(super) log_sequence: Oid,
    pub(super) runs: Oid,
    pub(super) checkpoints: Oid,
}

impl Relations {
    /// Looks the names up once, and again after every invalidation of `encryption_keys` (DROP
    /// EXTENSION and REINDEX CONCURRENTLY give new ids).
    pub(super) fn resolve() -> Result<Self, Error> {
        thread_local! { static KNOWN: Cell<Option<(u64, Relations)>> = const { Cell::new(None) } }
        invalidations::accept_invalidations();
        if let Some((generation, relations)) = KNOWN.get()
            && generation == invalidations::generation()
        {
            return Ok(relations);
        }
        let relations = Self::look_up().map_err(not_there)?;
        invalidations::watch_relation(relations.keys);
        KNOWN.set(Some((invalidations::generation(), relations)));
        Ok(relations)
    }

    /// Or what is missing.
    fn look_up() -> Result<Self, &'static CStr> {
        let schema = schemas::oid(schemas::USERS).ok_or(schemas::USERS)?;
        let internals = schemas::oid(schemas::INTERNAL).ok_or(schemas::INTERNAL)?;
        let relation_in = |schema: Oid, name: &'static CStr| {
            // SAFETY: a catalog look-up by name that answers InvalidOid if there is none.
            valid(unsafe { pg_sys::get_relname_relid(name.as_ptr(), schema) }).ok_or(name)
        };
        let relation = |name| relation_in(schema, name);
        let encrypted_type = type_named(c"encrypted").ok_or(c"encrypted")?;
        Ok(Self {
            keys: relation(c"encryption_keys")?,
            keys_by_id: relation(c"encryption_keys_pkey")?,
            active_keys: relation(c"encryption_keys_active")?,
            keys_by_version: relation(c"encryption_keys_version")?,
            master_keys: relation(c"master_keys")?,
            encrypted_type,
            encrypted_text_type: type_named(c"encrypted_text").unwrap_or(encrypted_type),
            log: relation(c"audit_log")?,
            log_sequence: relation_in(internals, c"audit_log_id_seq")?,
            runs: relation_in(internals, c"reencryption_chunks")?,
            checkpoints: relation(c"audit_checkpoints")?,
        })
    }
}

/// Without the extension nothing of it is there.
fn not_there(what: &CStr) -> Error {
    // SAFETY: a catalog look-up by name that answers InvalidOid if there is none.
    match valid(unsafe { pg_sys::get_extension_oid(c"pg_fieldcrypt".as_ptr(), true) }) {
        Some(_) => Error::Renamed { what: what.to_string_lossy().into_owned() },
        None => Error::NotInstalled,
    }
}

fn valid(oid: Oid) -> Option<Oid> {
    (oid != pg_sys::InvalidOid).then_some(oid)
}
