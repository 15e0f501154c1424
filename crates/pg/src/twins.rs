//! Columns of which one takes over from the other: which they are says the condition of the trigger that keeps them alike,
//! where Postgres follows renames, refuses to drop either, and carries both over to partitions and dumps.

use pgrx::pg_sys::{self, Datum, Oid};

use super::declarations::{column_of, constant};
use super::text_forms::AnyValue;
use super::triggers::{Operation, TriggerCall};
use super::version;

/// What the trigger is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The new column gets what is written to the old one.
    Encrypt,
    /// A row whose new value is to be made anew is noted.
    Mark,
    /// The old column gets what is written to the new one.
    Decrypt,
    /// A row whose old value is no longer that of the new one is noted.
    Forget,
}

impl Step {
    fn of_name(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"encrypt" => Self::Encrypt,
            b"mark" => Self::Mark,
            b"decrypt" => Self::Decrypt,
            b"forget" => Self::Forget,
            _ => return None,
        })
    }

    const ALL: [Self; 4] = [Self::Encrypt, Self::Mark, Self::Decrypt, Self::Forget];
}

/// Two columns, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Twins {
    /// The one that is encrypted otherwise, or not at all.
    pub plaintext: i16,
    /// The protected one.
    pub value: i16,
    /// What is to be done.
    pub step: Step,
}

/// Bytes that the trigger keeps for a statement: what its condition says, and whether its table's owner was asked for his right.
const KEPT: usize = 7;

impl TriggerCall {
    /// Asks once a statement.
    pub fn once_of_twins<E>(&self, ask: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let kept = self.kept(KEPT);
        if kept[6] == 0 {
            ask()?;
            kept[6] = 1;
        }
        Ok(())
    }

    /// Who owns the relation.
    pub fn owner(&self) -> Oid {
        // SAFETY: valid trigger data; the relation is open while the trigger runs.
        unsafe { (*(*self.open_relation()).rd_rel).relowner }
    }

    /// The columns that the trigger's condition names: read once a statement.
    pub fn twins(&self) -> Option<Twins> {
        let kept = self.kept(KEPT);
        if kept[0] == 0 {
            let found = self.read_twins()?;
            kept[2..4].copy_from_slice(&found.plaintext.to_ne_bytes());
            kept[4..6].copy_from_slice(&found.value.to_ne_bytes());
            kept[1] = found.step as u8;
            kept[0] = 1;
        }
        Some(Twins {
            plaintext: i16::from_ne_bytes([kept[2], kept[3]]),
            value: i16::from_ne_bytes([kept[4], kept[5]]),
            step: Step::ALL.into_iter().find(|step| *step as u8 == kept[1])?,
        })
    }

    fn read_twins(&self) -> Option<Twins> {
        // SAFETY: the condition is NULL or in Postgres's own text form, which gives nodes of the kinds that their tags say.
        unsafe {
            let text = (*self.trigger()).tgqual;
            if text.is_null() {
                return None;
            }
            let node = pg_sys::stringToNode(text).cast::<pg_sys::Node>();
            if node.is_null() || (*node).type_ != pg_sys::NodeTag::T_FuncExpr {
                return None;
            }
            let call = node.cast::<pg_sys::FuncExpr>();
            let arguments: Vec<_> =
                pgrx::PgList::<pg_sys::Node>::from_pg((*call).args).iter_ptr().collect();
            let [plaintext, value, step] = arguments[..] else { return None };
            Some(Twins {
                plaintext: column_of(plaintext)?,
                value: column_of(value)?,
                step: Step::of_name(&constant(step)?)?,
            })
        }
    }

    /// A column of the row after, with its type.
    pub fn value_after(&self, column: i16) -> AnyValue {
        AnyValue { type_oid: self.type_of(column).0, datum: self.after(column) }
    }

    /// The type of a column of the relation, and its modifier.
    pub fn type_of(&self, column: i16) -> (Oid, i32) {
        // SAFETY: the relation has the column.
        unsafe {
            let attribute =
                &*version::attribute((*self.open_relation()).rd_att, column as usize - 1);
            (attribute.atttypid, attribute.atttypmod)
        }
    }

    /// Its name, in the database's encoding.
    pub fn name_of(&self, column: i16) -> Vec<u8> {
        let named = self.columns().into_iter().find(|(number, _, _)| *number == column);
        named.map(|(_, name, _)| name).unwrap_or_default()
    }

    /// Whether an UPDATE changes a column other than this one.
    pub fn changes_another_than(&self, column: i16) -> bool {
        let columns = self.columns();
        columns.iter().any(|(number, _, _)| *number != column && self.is_changed(*number))
    }

    /// The row after with another value, or NULL, in a column: what a BEFORE trigger returns then.
    pub fn row_with_one(&self, column: i16, value: Option<Datum>) -> Option<Datum> {
        let Some(value) = value else {
            if self.after(column).is_none() {
                return self.row_datum();
            }
            return self.row_without(column);
        };
        self.row_with(&[(column, value)])
    }

    /// The relation, or the table at the top of a partition.
    pub fn root(&self) -> Oid {
        // SAFETY: valid trigger data; the function reads the catalog and gives an oid or NULL.
        unsafe {
            let relation = self.open_relation();
            if !(*(*relation).rd_rel).relispartition {
                return (*relation).rd_id;
            }
            let argument = [Some(Datum::from((*relation).rd_id))];
            pgrx::direct_function_call::<Oid>(pg_sys::pg_partition_root, &argument)
                .unwrap_or((*relation).rd_id)
        }
    }

    /// Whether it is an INSERT.
    pub fn is_insert(&self) -> bool {
        self.operation() == Operation::Insert
    }
}

/// Whether this session applies what another server did, where ordinary triggers do not fire.
pub fn is_replica() -> bool {
    // SAFETY: a variable of the backend.
    unsafe { pg_sys::SessionReplicationRole == pg_sys::SESSION_REPLICATION_ROLE_REPLICA as i32 }
}
