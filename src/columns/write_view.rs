//! What is written to a decrypted view goes to its table, with the rights of who writes it. The table's own trigger encrypts.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use pgrx::pg_sys::{Datum, Oid};

use crate::error::Error;
use crate::pg::known_relations::KnownRelations;
use crate::pg::spi::{self, Prepared};
use crate::pg::triggers::{Operation, TriggerCall};
use crate::pg::views::{View, ViewColumn};
use crate::pg::{encoding, relations};

/// INSTEAD OF INSERT, UPDATE and DELETE, for each row.
pub fn write_view(trigger: &TriggerCall) -> Result<Option<Datum>, Error> {
    if !trigger.is_instead() || !trigger.is_for_each_row() {
        return Err(Error::WrongTrigger { made_by: "create_decrypted_view" });
    }
    let view = Known::of(trigger)?;
    match trigger.operation() {
        Operation::Insert => view.insert(trigger),
        Operation::Update => view.update(trigger),
        _ => view.delete(trigger),
    }
}

/// What is known of a view, and its statements.
struct Known {
    view: View,
    prepared: RefCell<HashMap<Statement, Prepared>>,
}

/// A statement on the table: what is done, and to which columns of the view (by a bit each in as many words).
#[derive(Clone, PartialEq, Eq, Hash)]
struct Statement {
    operation: u8,
    columns: Vec<usize>,
    gives_row: bool,
}

impl Known {
    fn of(trigger: &TriggerCall) -> Result<Rc<Self>, Error> {
        thread_local! {
            static KNOWN: RefCell<KnownRelations<Known>> = const { RefCell::new(KnownRelations::new()) }
        }
        let look_up = || Ok(Rc::new(Self { view: trigger.view()?, prepared: RefCell::default() }));
        KnownRelations::of(&KNOWN, trigger.relation(), look_up, Self::give_back)
    }

    /// Gives its plans back, unless a call further out is at it.
    fn give_back(known: Rc<Self>) {
        if let Ok(known) = Rc::try_unwrap(known) {
            known.prepared.into_inner().into_values().for_each(Prepared::free);
        }
    }

    fn insert(&self, trigger: &TriggerCall) -> Result<Option<Datum>, Error> {
        // What the database makes by itself is left to it where nothing was given: the view has no such default.
        let given = |column: &ViewColumn| match &column.behind {
            Some(behind) if behind.is_generated => false,
            Some(behind) => {
                let is_sealed_literal =
                    !column.is_plain && behind.has_default && !column.has_default;
                let is_made = behind.is_identity || is_sealed_literal;
                !is_made || trigger.after(column.number).is_some()
            }
            None => false,
        };
        let columns = self.places(given);
        let gives_row = relations::may_read(self.view.relation);
        let statement = Statement { operation: b'i', columns, gives_row };
        let arguments = self.arguments(&statement.columns, |column| trigger.after(column.number));
        let (_, row) = self.run(trigger, statement, &arguments)?;
        Ok(row.or_else(|| trigger.row_datum()))
    }

    fn update(&self, trigger: &TriggerCall) -> Result<Option<Datum>, Error> {
        let is_written = |column: &ViewColumn| {
            column.behind.as_ref().is_some_and(|behind| !behind.is_generated)
                && trigger.is_changed(column.number)
        };
        let columns = self.places(is_written);
        let gives_row = relations::may_read(self.view.relation);
        let statement = Statement { operation: b'u', columns, gives_row };
        let mut arguments =
            self.arguments(&statement.columns, |column| trigger.after(column.number));
        arguments.extend(self.found_by(trigger)?);
        match self.run(trigger, statement, &arguments)? {
            (0, _) => self.not_found(trigger),
            (_, row) => Ok(row.or_else(|| trigger.row_datum())),
        }
    }

    fn delete(&self, trigger: &TriggerCall) -> Result<Option<Datum>, Error> {
        let statement = Statement { operation: b'd', columns: Vec::new(), gives_row: false };
        match self.run(trigger, statement, &self.found_by(trigger)?)? {
            (0, _) => self.not_found(trigger),
            _ => Ok(trigger.row_datum()),
        }
    }

    /// The row is gone, or hidden, or others have changed it since the statement began, which chose it by what it was: that of
    /// a table would be computed anew, and that of a view can't be.
    fn not_found(&self, trigger: &TriggerCall) -> Result<Option<Datum>, Error> {
        let statement = Statement { operation: b'?', columns: Vec::new(), gives_row: false };
        match self.run(trigger, statement, &self.found_by(trigger)?)? {
            (0, _) => Ok(Some(Datum::null())),
            _ => Err(Error::ChangedMeanwhile),
        }
    }

    /// What finds the row: all that the view shows of its columns, as it was, and its key.
    fn found_by(&self, trigger: &TriggerCall) -> Result<Vec<(Oid, Option<Datum>)>, Error> {
        let before = |column: &ViewColumn| trigger.before(column.number);
        let mut arguments = self.arguments(&self.compared(), before);
        arguments.extend(self.arguments(self.key()?, before));
        Ok(arguments)
    }

    fn compared(&self) -> Vec<usize> {
        self.places(|column| column.behind.is_some())
    }

    fn places(&self, is_wanted: impl Fn(&ViewColumn) -> bool) -> Vec<usize> {
        let columns = self.view.columns.iter().enumerate();
        columns.filter(|(_, column)| is_wanted(column)).map(|(place, _)| place).collect()
    }

    fn key(&self) -> Result<&[usize], Error> {
        self.view.key.as_deref().ok_or(Error::Declaration {
            problem: "the view does not show the primary key of its table: no row of it can be found".into(),
            hint: "Write to the table, or SELECT fieldcrypt.create_decrypted_view(...) with the columns of the key.",
        })
    }

    fn arguments(
        &self,
        places: &[usize],
        value: impl Fn(&ViewColumn) -> Option<Datum>,
    ) -> Vec<(Oid, Option<Datum>)> {
        let column = |place: &usize| self.view.columns.get(*place);
        places.iter().filter_map(column).map(|column| (column.type_oid, value(column))).collect()
    }

    /// Runs a statement; gives the number of its rows, and the row of the view with what the table has made of it.
    fn run(
        &self,
        trigger: &TriggerCall,
        statement: Statement,
        arguments: &[(Oid, Option<Datum>)],
    ) -> Result<(u64, Option<Datum>), Error> {
        let known = self.prepared.borrow().get(&statement).copied();
        let prepared = match known {
            Some(prepared) => prepared,
            None => {
                let types: Vec<Oid> = arguments.iter().map(|(type_oid, _)| *type_oid).collect();
                let prepared = spi::prepare(&self.text(&statement)?, &types)?;
                self.prepared.borrow_mut().insert(statement.clone(), prepared);
                prepared
            }
        };
        // What is encrypted comes back as it was given: who writes may not be who may read.
        let plain = self.places(|column| column.is_plain && column.behind.is_some());
        let values: Vec<_> = arguments.iter().map(|(_, value)| *value).collect();
        prepared.run_for_row(&values, |row| {
            if !statement.gives_row {
                return None;
            }
            let shown = plain.iter().zip(1i16..).filter_map(|(place, number)| {
                Some((self.view.columns.get(*place)?.number, row.datum(number)))
            });
            trigger.row_with_any(&shown.collect::<Vec<_>>())
        })
    }

    fn text(&self, statement: &Statement) -> Result<String, Error> {
        let columns = &self.view.columns;
        let name = |place: &usize| {
            let behind = columns.get(*place).and_then(|column| column.behind.as_ref());
            behind.map(|behind| relations::quoted(&behind.name)).unwrap_or_default()
        };
        let shown = |place: &usize| {
            columns
                .get(*place)
                .map(|column| encoding::lossy(&column.expression))
                .unwrap_or_default()
        };
        let list = |of: &dyn Fn(&usize) -> String, places: &[usize]| {
            places.iter().map(of).collect::<Vec<_>>().join(", ")
        };
        let numbers = |first: usize, count: usize| {
            (first..first + count).map(|n| format!("${n}")).collect::<Vec<_>>().join(", ")
        };
        let table = encoding::lossy(&self.view.table);
        let count = statement.columns.len();
        let compared = self.compared();
        let is_same = |first: usize| {
            format!(
                "ROW({})::pg_catalog.record OPERATOR(pg_catalog.*=) ROW({})::pg_catalog.record",
                list(&shown, &compared),
                numbers(first, compared.len())
            )
        };
        let has_key = |first: usize| -> Result<String, Error> {
            let same = |(place, number): (&usize, usize)| {
                format!("t.{} OPERATOR(pg_catalog.=) ${number}", name(place))
            };
            Ok(self.key()?.iter().zip(first..).map(same).collect::<Vec<_>>().join(" AND "))
        };
        let found = |first: usize| -> Result<String, Error> {
            Ok(format!("{} AND {}", has_key(first + compared.len())?, is_same(first)))
        };
        let row = || {
            let plain = self.places(|column| column.is_plain && column.behind.is_some());
            match statement.gives_row && !plain.is_empty() {
                true => {
                    format!(" RETURNING {}", list(&|place| format!("t.{}", name(place)), &plain))
                }
                false => String::new(),
            }
        };
        Ok(match statement.operation {
            b'i' if count == 0 => format!("INSERT INTO {table} AS t DEFAULT VALUES{}", row()),
            b'i' => format!(
                "INSERT INTO {table} AS t ({}) VALUES ({}){}",
                list(&name, &statement.columns),
                numbers(1, count),
                row()
            ),
            // An UPDATE that changes nothing is one all the same: triggers of the table may wait for it.
            b'u' if count == 0 => {
                let same = self.places(|column| {
                    column.is_plain
                        && column
                            .behind
                            .as_ref()
                            .is_some_and(|it| !it.is_generated && !it.is_identity)
                });
                let Some(same) = same.first() else {
                    return Ok(format!("SELECT FROM {table} AS t WHERE {}", found(1)?));
                };
                format!(
                    "UPDATE {table} AS t SET {0} = t.{0} WHERE {1}{2}",
                    name(same),
                    found(1)?,
                    row()
                )
            }
            b'u' => format!(
                "UPDATE {table} AS t SET ({}) = ROW({}) WHERE {}{}",
                list(&name, &statement.columns),
                numbers(1, count),
                found(1 + count)?,
                row()
            ),
            b'd' => format!("DELETE FROM {table} AS t WHERE {}", found(1)?),
            _ => format!(
                "SELECT FROM {table} AS t WHERE {} AND NOT {}",
                has_key(1 + compared.len())?,
                is_same(1)
            ),
        })
    }
}
