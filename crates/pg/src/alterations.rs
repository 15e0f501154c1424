//! Statements after which something is called otherwise, or has left its parent: what they are about.

use std::ffi::CStr;

use pgrx::pg_sys::{self, AlterTableType, NodeTag, ObjectType, Oid};

use super::drops::EventTriggerCall;
use super::schemas;

/// What a statement renames, moves or takes out of its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Altered {
    /// A relation, or a column of it, gets another name, or the relation another schema; or a column is dropped.
    Relation(Oid),
    /// A schema gets another name.
    Schema(Oid),
    /// An extension is moved, with whatever belongs to it.
    Extension,
    /// A partition, or a table that inherits, leaves its parent.
    Leaves(Oid),
}

impl EventTriggerCall {
    /// Whether the statement has not begun yet.
    pub fn is_at_start(&self) -> bool {
        // SAFETY: valid event trigger data; the name of the event is a C string.
        unsafe { CStr::from_ptr((*self.data()).event) == c"ddl_command_start" }
    }

    /// Which statement this is: the same at its start and at its end, and another for one inside of it.
    pub fn statement(&self) -> usize {
        // SAFETY: valid event trigger data.
        unsafe { (*self.data()).parsetree as usize }
    }

    /// Whether the statement is one of those; what it names may not be there.
    pub fn alters(&self) -> bool {
        // SAFETY: the node of the statement.
        unsafe { subject((*self.data()).parsetree).is_some() }
    }

    /// What it is about; `None` if that is not there, or the extension's own. Locks nothing and asks for no rights but USAGE of a schema, which the statement does as well.
    pub fn altered(&self) -> Option<Altered> {
        // SAFETY: the node of the statement, and what it names: look-ups that give InvalidOid where nothing is there.
        unsafe {
            let altered = match subject((*self.data()).parsetree)? {
                Subject::Relation(name) => Altered::Relation(named(name)),
                Subject::Leaves(name) => Altered::Leaves(named(name)),
                Subject::Schema(name) => Altered::Schema(pg_sys::get_namespace_oid(name, true)),
                Subject::Extension => Altered::Extension,
            };
            let schema = match altered {
                Altered::Relation(oid) | Altered::Leaves(oid) => pg_sys::get_rel_namespace(oid),
                Altered::Schema(oid) => oid,
                Altered::Extension => return Some(altered),
            };
            let is_own = schemas::ALL.into_iter().any(|own| schemas::oid(own) == Some(schema));
            (schema != pg_sys::InvalidOid && !is_own).then_some(altered)
        }
    }
}

enum Subject {
    Relation(*const pg_sys::RangeVar),
    Leaves(*const pg_sys::RangeVar),
    Schema(*const std::ffi::c_char),
    Extension,
}

/// # Safety
///
/// Null, or a statement's node.
unsafe fn subject(statement: *const pg_sys::Node) -> Option<Subject> {
    // SAFETY: by the contract; nodes are read as what their tags say they are.
    unsafe {
        if statement.is_null() {
            return None;
        }
        match (*statement).type_ {
            NodeTag::T_RenameStmt => {
                let rename = &*statement.cast::<pg_sys::RenameStmt>();
                match rename.renameType {
                    ObjectType::OBJECT_SCHEMA => Some(Subject::Schema(rename.subname)),
                    ObjectType::OBJECT_TABLE
                    | ObjectType::OBJECT_FOREIGN_TABLE
                    | ObjectType::OBJECT_MATVIEW
                    | ObjectType::OBJECT_VIEW
                    | ObjectType::OBJECT_INDEX
                    | ObjectType::OBJECT_COLUMN
                    | ObjectType::OBJECT_ATTRIBUTE => relation(rename.relation),
                    _ => None,
                }
            }
            NodeTag::T_AlterObjectSchemaStmt => {
                let moved = &*statement.cast::<pg_sys::AlterObjectSchemaStmt>();
                match moved.objectType {
                    ObjectType::OBJECT_EXTENSION => Some(Subject::Extension),
                    _ => relation(moved.relation),
                }
            }
            NodeTag::T_AlterTableStmt => {
                let alter = &*statement.cast::<pg_sys::AlterTableStmt>();
                pgrx::PgList::<pg_sys::AlterTableCmd>::from_pg(alter.cmds).iter_ptr().find_map(
                    |command| match (*command).subtype {
                        AlterTableType::AT_DropInherit => Some(Subject::Leaves(alter.relation)),
                        AlterTableType::AT_DropColumn => relation(alter.relation),
                        AlterTableType::AT_DetachPartition
                        | AlterTableType::AT_DetachPartitionFinalize => {
                            let partition = (*command).def.cast::<pg_sys::PartitionCmd>();
                            (!partition.is_null()).then(|| Subject::Leaves((*partition).name))
                        }
                        _ => None,
                    },
                )
            }
            _ => None,
        }
    }
}

fn relation(name: *const pg_sys::RangeVar) -> Option<Subject> {
    (!name.is_null()).then_some(Subject::Relation(name))
}

/// # Safety
///
/// A name in a statement.
unsafe fn named(name: *const pg_sys::RangeVar) -> Oid {
    // SAFETY: by the contract.
    unsafe {
        pg_sys::RangeVarGetRelidExtended(
            name,
            pg_sys::NoLock as pg_sys::LOCKMODE,
            pg_sys::RVROption::RVR_MISSING_OK,
            None,
            std::ptr::null_mut(),
        )
    }
}
