//! Verification of stored values: a stretch of a table, opened value by value. Nothing is changed or shown.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use fieldcrypt_envelope::{AnyCiphertext, Expected};
use pgrx::pg_sys::Oid;
use serde_json::{Value, json};

use super::column::{Holder, holders};
use super::failure::{RowKey, failure, key_id_of};
use crate::error::Error;
use crate::fields;
use crate::pg::declarations::Declaration;
use crate::pg::expression::{Evaluation, Expression};
use crate::pg::heap::{self, Access, Scan, Stop, Table};
use crate::pg::memory::Scratch;
use crate::pg::setting::TemporarySettings;
use crate::pg::{encoding, owners_code, security};

/// Rows that are looked at before the clock is.
const ROWS_AT_ONCE: u64 = 20_000;
/// A batch ends after this, so that progress can be seen.
const TIME_AT_ONCE: Duration = Duration::from_secs(1);
/// Failures that one batch tells of.
const MOST_FAILURES: usize = 1000;

/// What is verified.
pub struct Stretch<'a> {
    /// The table.
    pub relation: Oid,
    /// Where it begins.
    pub from: heap::RowId,
    /// The block before which it ends.
    pub end_block: u32,
    /// Values after which it ends at the latest.
    pub max_values: u64,
    /// What columns are bound to: a JSON object, column name to `{"constant": …}`, `{"expression": …}`, or
    /// `{"declared": true}` for a protected column, whose declaration says it. Columns that are not in it are not looked at.
    pub bindings: &'a [u8],
}

/// A column that is verified.
struct Target {
    holder: Holder,
    binding: Binding,
}

/// What a column's values are bound to.
enum Binding {
    Constant(Vec<u8>),
    Expression(Expression),
    Declared(Box<Declaration>),
}

/// The same, of one row. `None` is NULL.
enum Bound {
    Context(Option<Vec<u8>>),
    Place(Option<String>),
}

/// Verifies a stretch, and gives what was found as JSON.
pub fn verify(stretch: &Stretch<'_>) -> Result<Value, Error> {
    owners_code::forget_owners_code();
    owners_code::catchable(|| {
        let guard = TemporarySettings::begin(TemporarySettings::QUIET);
        let Some(table) = Table::open(stretch.relation, Access::Read) else {
            guard.end();
            return Ok(json!({ "is_gone": true }));
        };
        heap::refuse_unless_scannable(&table)?;
        let result = security::as_table_owner(table.owner(), || stretch.verify_as_owner(&table));
        table.close();
        guard.end();
        result
    })
}

impl Stretch<'_> {
    fn verify_as_owner(&self, table: &Table) -> Result<Value, Error> {
        let evaluation = Evaluation::new();
        let targets = self.targets(table, &evaluation)?;
        let end_block = self.end_block.min(table.blocks());
        let (mut values, mut failed, mut failures) = (0u64, 0u64, Vec::new());
        let (mut rows, mut next) = (0, None);
        if !targets.is_empty() && self.from.block < end_block {
            let row_key = RowKey::of(table);
            let scratch = Scratch::new();
            let looks = targets.iter().map(|target| target.holder.look()).collect();
            let mut scan = Scan::begin(table, self.from, end_block, looks);
            let began = Instant::now();
            loop {
                let row = match scan.next(ROWS_AT_ONCE, |_, _| ControlFlow::Break(())) {
                    Stop::End => break,
                    Stop::Pause => {
                        crate::pg::transaction::check_for_interrupts();
                        continue;
                    }
                    Stop::Row(row) => row,
                };
                scratch.run(|| {
                    let datums = scan.row();
                    for target in &targets {
                        let at = target.holder.column.number as usize - 1;
                        let Some(datum) = datums.get(at).copied().flatten() else { continue };
                        let bound = target.binding.of_row(&evaluation, &scan)?;
                        target.holder.shape.visit(datum, &mut |bytes| {
                            values += 1;
                            match target.verify(bytes, &bound) {
                                Ok(()) => {}
                                Err(error) if error.is_of_one_value() => {
                                    failed += 1;
                                    if failures.len() < MOST_FAILURES {
                                        let key = row_key.json(&datums)?;
                                        let column = &target.holder.column.name;
                                        let id = key_id_of(bytes);
                                        failures.push(failure(
                                            column,
                                            key.as_ref(),
                                            row,
                                            id,
                                            &error,
                                        ));
                                    }
                                }
                                Err(error) => return Err(error),
                            }
                            Ok(())
                        })?;
                    }
                    evaluation.forget_row();
                    Ok::<_, Error>(())
                })?;
                crate::pg::transaction::check_for_interrupts();
                if values >= self.max_values || began.elapsed() > TIME_AT_ONCE {
                    next = Some(row.next());
                    break;
                }
            }
            rows = scan.rows();
            scan.finish();
            scratch.end();
        }
        evaluation.end();
        Ok(json!({
            "is_gone": false,
            "next_block": next.map(|next| next.block),
            "next_offset": next.map(|next| next.offset),
            "rows": rows,
            "values": values,
            "failed": failed,
            "failures": failures,
        }))
    }

    fn targets(&self, table: &Table, evaluation: &Evaluation) -> Result<Vec<Target>, Error> {
        let bindings: Value = serde_json::from_slice(&encoding::to_utf8(self.bindings)?)
            .map_err(|_| Error::ContextExpression)?;
        let declarations = table.declarations()?;
        let mut targets = Vec::new();
        for holder in holders(table)? {
            let rule = &bindings[&encoding::lossy(&holder.column.name)];
            let text = |name: &str| match rule[name].as_str() {
                Some(text) => {
                    encoding::from_utf8(text.as_bytes()).map(|text| Some(text.into_owned()))
                }
                None => Ok(None),
            };
            let declaration = declarations
                .iter()
                .find(|declaration| declaration.column == holder.column.number)
                .filter(|_| rule["declared"].as_bool() == Some(true));
            let binding = match (declaration, text("constant")?, text("expression")?) {
                (Some(declaration), _, _) => Binding::Declared(Box::new(declaration.clone())),
                (_, Some(constant), _) => Binding::Constant(constant),
                (_, _, Some(expression)) => {
                    Binding::Expression(evaluation.prepare(table, &expression)?)
                }
                _ => continue,
            };
            targets.push(Target { holder, binding });
        }
        Ok(targets)
    }
}

impl Target {
    /// Whether a value is that of a row with this; an error says why not.
    fn verify(&self, bytes: &[u8], bound: &Bound) -> Result<(), Error> {
        let place = match bound {
            Bound::Context(None) | Bound::Place(None) => return Err(Error::ContextIsNull),
            Bound::Context(Some(context)) => return fields::verify_in_context(bytes, context),
            Bound::Place(Some(place)) => place,
        };
        let column = || Some(encoding::lossy(&self.holder.column.name));
        match AnyCiphertext::parse(bytes)? {
            AnyCiphertext::Bound(value) => match &self.binding {
                Binding::Declared(declaration) if value.header().form != declaration.form => {
                    let key = value.header().key_id;
                    Err(Error::NotOfThisPlace { key, column: column() })
                }
                _ => fields::verify_bound(&value, Expected::Place(place)),
            },
            AnyCiphertext::Field(value) => {
                let column = column().unwrap_or_default();
                Err(Error::NotBound { key: value.key_id(), column })
            }
        }
    }
}

impl Binding {
    /// What values of the row are bound to at which the scan stands.
    fn of_row(&self, evaluation: &Evaluation, scan: &Scan) -> Result<Bound, Error> {
        Ok(match self {
            Self::Constant(text) => Bound::Context(Some(text.clone())),
            Self::Expression(expression) => Bound::Context(evaluation.value(expression, scan)?),
            Self::Declared(declaration) => {
                let row = scan.row();
                let datum = |number: i16| row.get(number as usize - 1).copied().flatten();
                Bound::Place(declaration.place_of(datum)?)
            }
        })
    }
}
