//! Other nodes, as the catalogs of this one tell of them: Citus, and subscriptions that bring the tables of keys. With
//! `sql/nodes.sql` the one place that knows Citus, and only where its catalog is.

use std::cell::Cell;
use std::ffi::{CStr, c_char};

use fieldcrypt_error::{Error, KeysFrom, Report};
use pgrx::pg_sys::{self, Oid};

use super::key_table::Purpose;
use super::relations::Relations;
use super::scan::{oid_key, scan};
use super::{catalogs, encoding, report, transaction};

/// Where the keys of this purpose come from, if they are not made here. Not for the row path.
///
/// The keys of the audit log are each node's own, but with the table of keys a subscription brings those, too. A
/// subscription that is disabled will go on one day, and counts.
pub fn keys_from(purpose: Purpose) -> Result<Option<KeysFrom>, Error> {
    let relations = Relations::resolve()?;
    for table in [relations.keys, relations.master_keys] {
        if let Some(subscription) = subscription_to(table)? {
            return Ok(Some(KeysFrom::Publisher { subscription }));
        }
    }
    Ok((purpose != Purpose::Audit && is_citus_worker()?).then_some(KeysFrom::Coordinator))
}

/// Refuses to make a key where it comes from another node.
pub fn refuse_unless_made_here(purpose: Purpose) -> Result<(), Error> {
    match keys_from(purpose)? {
        Some(from) => Err(Error::KeysComeFrom(from)),
        None => Ok(()),
    }
}

/// A subscription that brings a table, by name.
fn subscription_to(table: Oid) -> Result<Option<String>, Error> {
    // Which subscription brings what is known by database, in a catalog of each.
    use catalogs::{
        Anum_pg_subscription_rel_srrelid as TABLE,
        Anum_pg_subscription_rel_srsubid as SUBSCRIPTION, SubscriptionRelRelationId,
        SubscriptionRelSrrelidSrsubidIndexId,
    };
    let (catalog, index) = (SubscriptionRelRelationId, SubscriptionRelSrrelidSrsubidIndexId);
    let mut found = None;
    scan(catalog, index, &mut [oid_key(TABLE, table)], |row| {
        found = row.oid(SUBSCRIPTION).and_then(name_of_subscription);
        Ok(found.is_none())
    })?;
    Ok(found)
}

/// The name of a subscription, if it is one of this database: the catalog of a database that was copied tells of those of
/// the other, too, and nothing arrives by them.
fn name_of_subscription(subscription: Oid) -> Option<String> {
    // SAFETY: look-ups that give NULL, or a copy of the name in memory of the statement, and InvalidOid if this database
    // has none of that name; inside a guard, since they may raise errors.
    unsafe {
        let name = pg_sys::ffi::pg_guard_ffi_boundary(|| {
            unguarded::get_subscription_name(subscription, true)
        });
        if name.is_null() {
            return None;
        }
        let here =
            pg_sys::ffi::pg_guard_ffi_boundary(|| unguarded::get_subscription_oid(name, true));
        (here == subscription).then(|| encoding::lossy(CStr::from_ptr(name).to_bytes()))
    }
}

mod unguarded {
    use pgrx::pg_sys;
    use std::ffi::c_char;
    unsafe extern "C-unwind" {
        /// Of `lsyscache.h`, which pgrx has no bindings for, like the next.
        pub fn get_subscription_name(subscription: pg_sys::Oid, missing_ok: bool) -> *mut c_char;
        pub fn get_subscription_oid(name: *const c_char, missing_ok: bool) -> pg_sys::Oid;
        /// Of `logicalworker.h`.
        pub fn IsLogicalWorker() -> bool;
    }
}

/// Whether this process applies what a subscription brings, or copies its tables.
pub fn is_applying() -> bool {
    // SAFETY: reads a variable of the process.
    unsafe { unguarded::IsLogicalWorker() }
}

/// Whether this is a node of Citus other than the coordinator, whose group is 0.
fn is_citus_worker() -> Result<bool, Error> {
    let Some(groups) = in_catalog(c"pg_dist_local_group") else { return Ok(false) };
    let mut is_worker = false;
    scan(groups, pg_sys::InvalidOid, &mut [], |row| {
        is_worker |= row.integer(1)? != 0;
        Ok(true)
    })?;
    Ok(is_worker)
}

/// A relation of Citus's: they lie among Postgres's own.
fn in_catalog(name: &CStr) -> Option<Oid> {
    // SAFETY: a catalog look-up by name that answers InvalidOid if there is none.
    let oid = unsafe {
        pg_sys::get_relname_relid(name.as_ptr(), Oid::from(pg_sys::PG_CATALOG_NAMESPACE))
    };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

thread_local! {
    static IS_SET_LOCAL: Cell<bool> = const { Cell::new(false) };
    static HAS_WARNED: Cell<bool> = const { Cell::new(false) };
    static CAME_WITH_THE_SESSION: Cell<bool> = const { Cell::new(false) };
}

/// Before a utility statement: whether it is a SET LOCAL, which Citus can be told to take along to its workers. It takes
/// no other SET, nor what functions set.
///
/// # Safety
///
/// The node is a utility statement.
pub(super) unsafe fn utility(node: *mut pg_sys::Node) {
    // SAFETY: by the contract; the tag says what the node is.
    let is_set_local = unsafe {
        (*node).type_ == pg_sys::NodeTag::T_VariableSetStmt
            && (*node.cast::<pg_sys::VariableSetStmt>()).is_local
    };
    IS_SET_LOCAL.set(is_set_local);
}

/// A utility statement is over.
pub(super) fn utility_ended() {
    IS_SET_LOCAL.set(false);
}

/// The setting that guards values was set when the session began, where no catalog can be read.
pub(super) fn setting_came_with_the_session() {
    CAME_WITH_THE_SESSION.set(true);
}

/// Warns of what came with the session, where that was not done yet. In a transaction; not for the row path.
pub fn warn_of_early_setting() {
    if CAME_WITH_THE_SESSION.take() {
        warn_of_setting();
    }
}

/// Warns, once a session, that a setting which guards values holds on this node alone. In a transaction.
pub(super) fn warn_of_setting() {
    if HAS_WARNED.get()
        || is_taken_along()
        || is_asked_by_citus()
        || in_catalog(c"pg_dist_partition").is_none()
    {
        return;
    }
    HAS_WARNED.set(true);
    report::warn(&Report::new(
        b"01000",
        "fieldcrypt.tenant holds on this node only: Citus does not take it to its workers, where another tenant's values decrypt".into(),
        "SET citus.propagate_set_commands = 'local', and in each transaction SET LOCAL fieldcrypt.tenant = '...': neither SET, set_config() nor lock_tenant() reaches a worker. See docs/more-than-one-node.md.",
    ));
}

/// Citus takes a SET LOCAL along where more statements can follow in its transaction: in a block, a function, DO or CALL.
fn is_taken_along() -> bool {
    IS_SET_LOCAL.get()
        && !transaction::ends_with_statement()
        && has_setting(c"citus.propagate_set_commands", |value| value == b"local")
}

/// Whether another node is the client: what it sets here is what it was told to take along.
fn is_asked_by_citus() -> bool {
    has_setting(c"application_name", |name| name.starts_with(b"citus_internal"))
}

fn has_setting(name: &CStr, is: impl FnOnce(&[u8]) -> bool) -> bool {
    // SAFETY: a look-up by name: NULL if there is no such setting, else a C string that lives until it is changed.
    unsafe {
        let value: *const c_char = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        !value.is_null() && is(CStr::from_ptr(value).to_bytes())
    }
}
