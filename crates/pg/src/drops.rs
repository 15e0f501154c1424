//! Drops, seen object by object, whatever statement they come from: DROP EXTENSION, SCHEMA, OWNED or TABLE, and all
//! that goes with those.

use std::cell::Cell;
use std::ffi::CStr;
use std::sync::OnceLock;

use fieldcrypt_error::Error;
use pgrx::pg_sys::{self, Oid};

use super::call::{self, Call};
use super::{callbacks, dependents, extension, relations, roles, schemas};

/// What of the extension is about to be dropped, if its loss is one of keys, values or the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// The table of keys, or a column of it.
    Keys,
    /// The extension, the type, or another table of keys or of the log.
    Other,
}

/// Is told of what is about to be dropped, and may refuse it.
pub type OnDrop = fn(Dropped) -> Result<(), Error>;

static ON_DROP: OnceLock<OnDrop> = OnceLock::new();

thread_local! {
    /// The transaction that drops the extension.
    static GOES: Cell<u64> = const { Cell::new(0) };
}

static mut PREVIOUS: pg_sys::object_access_hook_type = None;

/// Takes its place.
pub fn init(told: OnDrop) {
    ON_DROP.get_or_init(|| told);
    // SAFETY: hooks are set as Postgres says: keep what was there, and call it.
    unsafe {
        PREVIOUS = pg_sys::object_access_hook;
        pg_sys::object_access_hook = Some(at_access);
    }
}

/// A call by an event trigger.
pub struct EventTriggerCall {
    data: *mut pg_sys::EventTriggerData,
}

impl EventTriggerCall {
    /// Refuses if the function was called as an ordinary one.
    pub fn from(call: &Call) -> Result<Self, Error> {
        // SAFETY: `context` is null or a node; that of event triggers means one.
        unsafe {
            let context = (*call.raw()).context;
            (!context.is_null() && (*context).type_ == pg_sys::NodeTag::T_EventTriggerData)
                .then_some(Self { data: context.cast() })
                .ok_or(Error::NotATrigger)
        }
    }

    pub(super) fn data(&self) -> *mut pg_sys::EventTriggerData {
        self.data
    }

    /// Sees to it that a DROP OWNED which is to take the extension along meets nobody with a table in hand: it goes
    /// through what the role owns in whatever order that lies on disk, DROP EXTENSION locks the extension first.
    pub fn claim_what_is_owned(&self) {
        // SAFETY: valid event trigger data with the node of the statement, of which a DropOwnedStmt has a list of roles.
        let owners = unsafe {
            let node = (*self.data).parsetree;
            if node.is_null() || (*node).type_ != pg_sys::NodeTag::T_DropOwnedStmt {
                return;
            }
            pgrx::PgList::<pg_sys::RoleSpec>::from_pg((*node.cast::<pg_sys::DropOwnedStmt>()).roles)
        };
        let Ok(owner) = relations::owner_of_keys() else { return };
        // SAFETY: a role of the list; a look-up that gives InvalidOid if there is none.
        let mut owners =
            owners.iter_ptr().map(|role| unsafe { pg_sys::get_rolespec_oid(role, true) });
        // Others' statements fail.
        if roles::has_rights_of(owner) && owners.any(|role| role == owner) {
            extension::claim();
        }
    }
}

/// An error of the hook that was there before passes through by `longjmp`: this frame holds nothing that needs dropping.
unsafe extern "C-unwind" fn at_access(
    access: pg_sys::ObjectAccessType::Type,
    class: Oid,
    object: Oid,
    part: std::ffi::c_int,
    argument: *mut std::ffi::c_void,
) {
    // SAFETY: hands on what came.
    unsafe {
        if let Some(previous) = PREVIOUS {
            previous(access, class, object, part, argument);
        }
    }
    let may_be_ours = matches!(
        class,
        pg_sys::RelationRelationId | pg_sys::TypeRelationId | pg_sys::ExtensionRelationId
    );
    if access == pg_sys::ObjectAccessType::OAT_DROP && may_be_ours {
        call::raising_told(|| match (ON_DROP.get(), dropped(class, object, part != 0)) {
            (Some(told), Some(dropped)) => told(dropped),
            _ => Ok(()),
        });
    }
}

/// What of it is the extension's, where that is, or was when the transaction began: elsewhere anybody may have such names.
fn dropped(class: Oid, object: Oid, is_column: bool) -> Option<Dropped> {
    let dropped = named(class, object, is_column)?;
    if class == pg_sys::ExtensionRelationId {
        GOES.set(callbacks::transaction_serial());
    }
    let is_here = extension::oid().is_some() || GOES.get() == callbacks::transaction_serial();
    is_here.then_some(dropped)
}

/// By names, since a table that was taken out of the extension first is as much a loss.
fn named(class: Oid, object: Oid, is_column: bool) -> Option<Dropped> {
    // What an update of the extension drops is no more needed.
    // SAFETY: variables of the backend.
    if unsafe { pg_sys::creating_extension && is_extension(pg_sys::CurrentExtensionObject) } {
        return None;
    }
    match class {
        pg_sys::ExtensionRelationId => is_extension(object).then_some(Dropped::Other),
        pg_sys::TypeRelationId => {
            (relations::type_named(c"encrypted") == Some(object)).then_some(Dropped::Other)
        }
        _ => {
            let (name, kind, schema) = dependents::relation(object)?;
            let is_table =
                matches!(kind, pg_sys::RELKIND_RELATION | pg_sys::RELKIND_PARTITIONED_TABLE);
            if !is_table || schemas::ALL.into_iter().all(|ours| schemas::oid(ours) != Some(schema))
            {
                return None;
            }
            match name.as_slice() {
                b"encryption_keys" => Some(Dropped::Keys),
                _ if is_column => None,
                b"master_keys" => Some(Dropped::Other),
                name => name.starts_with(b"audit_").then_some(Dropped::Other),
            }
        }
    }
}

fn is_extension(oid: Oid) -> bool {
    // SAFETY: a look-up that gives NULL or a C string.
    unsafe {
        let name = pg_sys::get_extension_name(oid);
        !name.is_null() && CStr::from_ptr(name) == c"pg_fieldcrypt"
    }
}
