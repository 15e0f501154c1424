//! One batch of one table: a stretch of rows, brought to the active keys as the table's owner.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use fieldcrypt_envelope::{AnyCiphertext, Expected, KeyId, ciphertext};
use pgrx::pg_sys::{Datum, Oid};
use serde_json::{Value, json};

use super::column::{Holder, holders};
use super::failure::{RowKey, failure, key_id_of};
use crate::error::Error;
use crate::fields::{self, Standing};
use crate::pg::expression::Expression;
use crate::pg::heap::{self, Access, Glimpse, RowId, Scan, Stop, Table};
use crate::pg::memory::Scratch;
use crate::pg::row_update::{RowUpdate, Updated};
use crate::pg::setting::TemporarySettings;
use crate::pg::{encoding, owners_code, security};

/// Rows that are looked at before the clock is.
const ROWS_AT_ONCE: u64 = 20_000;
/// A batch that finds little to do ends after this, so that progress can be seen.
const TIME_AT_ONCE: Duration = Duration::from_secs(1);

/// What a batch is to do.
pub struct Batch<'a> {
    /// The table.
    pub relation: Oid,
    /// Where it begins.
    pub from: RowId,
    /// Where it ends at the latest.
    pub limits: Limits,
    /// Whether only values on compromised keys are moved.
    pub only_compromised: bool,
    /// The contexts that columns are bound to: a JSON object, column name to
    /// `{"constant": …}` or `{"expression": …}`; `{"is_left": true}` for one that is left alone.
    pub contexts: &'a [u8],
    /// Whether the row at hand is remembered with its key, for who finds out why the batch failed.
    pub is_careful: bool,
}

/// Where a batch ends at the latest.
pub struct Limits {
    /// Before this block.
    pub end_block: u32,
    /// After as many rows were changed, or were found that can't be.
    pub rows: u64,
    /// After as many bytes of new values.
    pub bytes: u64,
}

/// What a batch did, in numbers.
#[derive(Default)]
struct Outcome {
    moved: u64,
    bytes: u64,
    changed: u64,
    locked: u64,
    suppressed: u64,
    locked_blocks: Vec<u32>,
    failures: Vec<Value>,
}

/// A column that is brought to the active keys.
struct Target {
    holder: Holder,
    context: ColumnContext,
    /// Values that were opened.
    opened: Cell<u64>,
}

/// What the values of a column are bound to.
enum ColumnContext {
    None,
    Constant(String),
    Unprepared(String),
    Expression(Expression),
}

thread_local! {
    /// The row that a batch was at, for who finds out why it failed.
    static POSITION: Cell<Option<RowId>> = const { Cell::new(None) };
    static ROW_KEY: RefCell<Option<Value>> = const { RefCell::new(None) };
}

/// Runs a batch, in the transaction of the caller; gives what it did.
pub fn run(batch: &Batch<'_>) -> Result<Value, Error> {
    POSITION.set(None);
    ROW_KEY.set(None);
    owners_code::forget_owners_code();
    owners_code::catchable(|| batch.run())
}

/// The row that a failed batch was at, and whether the error is of the owner's code.
pub fn position() -> Value {
    let row = POSITION.get();
    json!({
        "block": row.map(|row| row.block),
        "offset": row.map(|row| row.offset),
        "row_key": ROW_KEY.take(),
        "in_owners_code": owners_code::failed_in_owners_code(),
    })
}

impl Batch<'_> {
    /// Runs it. An error is of the table as a whole, or of the system; what single values have is in
    /// the result.
    fn run(&self) -> Result<Value, Error> {
        let guard = TemporarySettings::begin(TemporarySettings::QUIET);
        let Some(table) = Table::open(self.relation, Access::Update) else {
            guard.end();
            return Ok(json!({ "is_gone": true }));
        };
        heap::refuse_unless_scannable(&table)?;
        if table.is_materialized_view() {
            return Err(Error::NotUpdatable { problem: "a materialized view" });
        }
        let result = security::as_table_owner(table.owner(), || self.run_as_owner(&table));
        table.close();
        guard.end();
        result
    }

    fn run_as_owner(&self, table: &Table) -> Result<Value, Error> {
        let mut targets = self.targets(table)?;
        let end_block = self.limits.end_block.min(table.blocks());
        if targets.is_empty() || self.from.block >= end_block {
            return Ok(summary(&Outcome::default(), &targets, 0, None));
        }
        let row_key = RowKey::of(table);
        let holders: Vec<_> = targets.iter().map(|target| target.holder.look()).collect();
        let columns: Vec<_> = holders.iter().map(|look| look.column).collect();
        let scratch = Scratch::new();
        let mut scan = Scan::begin(table, self.from, end_block, holders);
        let mut update: Option<RowUpdate> = None;
        let mut outcome = Outcome::default();
        let verdicts = Verdicts::new(self.only_compromised);
        let began = Instant::now();
        let next = loop {
            let stop = scan.next(ROWS_AT_ONCE, |_, glimpse| match glimpse {
                Glimpse::Header(header) if verdicts.is_fresh(header) => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            });
            let row = match stop {
                Stop::End => break None,
                Stop::Pause if began.elapsed() > TIME_AT_ONCE => break scan.position(),
                Stop::Pause => continue,
                Stop::Row(row) => row,
            };
            POSITION.set(Some(row));
            let mut values = scan.row();
            if self.is_careful {
                ROW_KEY.set(row_key.json(&values)?);
            }
            if !scratch.run(|| verdicts.needs_work(&targets, &values))? {
                continue;
            }
            let update = match &mut update {
                Some(update) => update,
                none => {
                    // What fails in here is no row's fault.
                    POSITION.set(None);
                    let begun = none.insert(RowUpdate::begin(table, &scan, &columns));
                    for target in &mut targets {
                        target.context.prepare(begun)?;
                    }
                    POSITION.set(Some(row));
                    begun
                }
            };
            let one = OneRow { row, row_key: &row_key, targets: &targets, verdicts: &verdicts };
            one.bring(&scan, update, &mut values, &mut outcome)?;
            let done = outcome.moved + outcome.failures.len() as u64 + outcome.locked;
            if done >= self.limits.rows
                || outcome.bytes >= self.limits.bytes
                || began.elapsed() > TIME_AT_ONCE
            {
                break Some(row.next());
            }
        };
        if let Some(update) = update {
            // Triggers that fire now fail at the last row that was changed, which is the only one if rows
            // are tried singly.
            update.finish();
        }
        POSITION.set(None);
        let rows = scan.rows();
        scan.finish();
        scratch.end();
        Ok(summary(&outcome, &targets, rows, next))
    }

    fn targets(&self, table: &Table) -> Result<Vec<Target>, Error> {
        let contexts: Value = serde_json::from_slice(&encoding::to_utf8(self.contexts)?)
            .map_err(|_| Error::ContextExpression)?;
        let mut targets = Vec::new();
        for holder in holders(table)? {
            if holder.column.is_generated {
                continue;
            }
            let rule = &contexts[&encoding::lossy(&holder.column.name)];
            if rule["is_left"] != true {
                let context = ColumnContext::of(rule);
                targets.push(Target { holder, context, opened: Cell::new(0) });
            }
        }
        Ok(targets)
    }
}

/// A row that has something stale, and what is needed to bring it to the active keys.
struct OneRow<'a> {
    row: RowId,
    row_key: &'a RowKey,
    targets: &'a [Target],
    verdicts: &'a Verdicts,
}

impl OneRow<'_> {
    fn bring(
        &self,
        scan: &Scan,
        update: &mut RowUpdate,
        values: &mut [Option<Datum>],
        outcome: &mut Outcome,
    ) -> Result<(), Error> {
        let (mut is_new, mut bytes) = (false, 0);
        let mut failures = Vec::new();
        for target in self.targets {
            let at = target.holder.column.number as usize - 1;
            let Some(Some(old)) = values.get(at).copied() else { continue };
            let mut context: Option<Vec<u8>> = None;
            let new = update.in_row_memory(|| {
                target.holder.shape.rebuild(old, &mut |value| {
                    let moved = self.verdicts.is_stale(value).and_then(|is_stale| {
                        if !is_stale {
                            return Ok(None);
                        }
                        // What knows its place needs no context, and keeps it.
                        if let AnyCiphertext::Bound(_) = AnyCiphertext::parse(value)? {
                            return fields::reencrypt_bound(value, Expected::Any).map(Some);
                        }
                        if context.is_none() {
                            context = Some(target.context.value(scan, update)?);
                        }
                        let context = context.as_deref().unwrap_or_default();
                        fields::with_context(context, |context| fields::reencrypt(value, context))
                            .map(Some)
                    });
                    match moved {
                        Ok(Some(new)) => {
                            is_new = true;
                            target.opened.set(target.opened.get() + 1);
                            bytes += value.len() as u64;
                            Ok(Some(new.into_datum()))
                        }
                        Ok(None) => Ok(None),
                        Err(error) if error.is_of_one_value() => {
                            failures.push((target, key_id_of(value), error));
                            Ok(None)
                        }
                        Err(error) => Err(error),
                    }
                })
            })?;
            if new.is_some() {
                values[at] = new;
            }
        }
        if !failures.is_empty() {
            let key = self.row_key.json(values)?;
            for (target, value, error) in failures {
                let column = &target.holder.column.name;
                outcome.failures.push(failure(column, key.as_ref(), self.row, value, &error));
            }
        }
        if is_new {
            match update.update(self.row, values)? {
                Updated::Done => {
                    outcome.moved += 1;
                    outcome.bytes += bytes;
                }
                Updated::Changed => outcome.changed += 1,
                Updated::Suppressed => outcome.suppressed += 1,
                Updated::Locked => {
                    outcome.locked += 1;
                    if outcome.locked_blocks.last() != Some(&self.row.block) {
                        outcome.locked_blocks.push(self.row.block);
                    }
                }
            }
        }
        update.forget_row();
        Ok(())
    }
}

impl ColumnContext {
    fn of(rule: &Value) -> Self {
        match (rule["constant"].as_str(), rule["expression"].as_str()) {
            (Some(constant), _) => Self::Constant(constant.into()),
            (_, Some(expression)) => Self::Unprepared(expression.into()),
            _ => Self::None,
        }
    }

    fn prepare(&mut self, update: &RowUpdate) -> Result<(), Error> {
        if let Self::Unprepared(text) = self {
            let text = encoding::from_utf8(text.as_bytes())?.into_owned();
            *self = Self::Expression(update.prepare(&text)?);
        }
        Ok(())
    }

    /// The context of the row at which the scan stands, in the database's encoding.
    fn value(&self, scan: &Scan, update: &RowUpdate) -> Result<Vec<u8>, Error> {
        match self {
            Self::None => Ok(Vec::new()),
            Self::Constant(text) => Ok(encoding::from_utf8(text.as_bytes())?.into_owned()),
            Self::Unprepared(_) => Err(Error::ContextExpression),
            Self::Expression(expression) => {
                update.value(expression, scan)?.ok_or(Error::ContextIsNull)
            }
        }
    }
}

/// Which keys are fresh and which are stale, as of this batch. A key that is deactivated meanwhile is
/// the next pass's.
struct Verdicts {
    only_compromised: bool,
    last_fresh: Cell<Option<KeyId>>,
    is_stale: RefCell<HashMap<KeyId, bool>>,
}

impl Verdicts {
    fn new(only_compromised: bool) -> Self {
        Self { only_compromised, last_fresh: Cell::new(None), is_stale: RefCell::default() }
    }

    /// Whether a value needs nothing, as far as is known without asking.
    fn is_fresh(&self, header: &[u8; ciphertext::HEADER_LENGTH]) -> bool {
        let Ok((_, key_id)) = ciphertext::suite_and_key_id(header) else { return false };
        if self.last_fresh.get() == Some(key_id) {
            return true;
        }
        let is_fresh = self.is_stale.borrow().get(&key_id) == Some(&false);
        if is_fresh {
            self.last_fresh.set(Some(key_id));
        }
        is_fresh
    }

    /// Whether a value is to be moved. An error is of this value, or of the system.
    fn is_stale(&self, value: &[u8]) -> Result<bool, Error> {
        let key_id = AnyCiphertext::parse(value)?.key_id();
        if let Some(is_stale) = self.is_stale.borrow().get(&key_id) {
            return Ok(*is_stale);
        }
        let is_stale = match fields::standing(key_id) {
            Ok(Standing::Active) => false,
            Ok(Standing::Compromised) => true,
            Ok(Standing::Deactivated) => !self.only_compromised,
            // What can't be moved is told of in the pass that moves everything.
            Err(error) if self.only_compromised && error.is_of_one_value() => false,
            Err(error) => return Err(error),
        };
        self.is_stale.borrow_mut().insert(key_id, is_stale);
        Ok(is_stale)
    }

    /// Whether any value of the row is stale or unusable; learns the standing of its keys.
    fn needs_work(&self, targets: &[Target], row: &[Option<Datum>]) -> Result<bool, Error> {
        let mut needs_work = false;
        for target in targets {
            let at = target.holder.column.number as usize - 1;
            let Some(Some(datum)) = row.get(at).copied() else { continue };
            target.holder.shape.visit(datum, &mut |value| {
                match self.is_stale(value) {
                    Ok(is_stale) => needs_work |= is_stale,
                    Err(error) if error.is_of_one_value() => needs_work |= !self.only_compromised,
                    Err(error) => return Err(error),
                }
                Ok(())
            })?;
        }
        Ok(needs_work)
    }
}

fn summary(outcome: &Outcome, targets: &[Target], rows: u64, next: Option<RowId>) -> Value {
    // What opens with the context that was set needs no counting.
    let opened: serde_json::Map<_, _> = targets
        .iter()
        .filter(|target| matches!(target.context, ColumnContext::None) && target.opened.get() > 0)
        .map(|target| (encoding::lossy(&target.holder.column.name), target.opened.get().into()))
        .collect();
    json!({
        "is_gone": false,
        "next_block": next.map(|next| next.block),
        "next_offset": next.map(|next| next.offset),
        "rows": rows,
        "moved": outcome.moved,
        "bytes": outcome.bytes,
        "changed": outcome.changed,
        "suppressed": outcome.suppressed,
        "locked": outcome.locked,
        "locked_blocks": outcome.locked_blocks,
        "opened_without_context": opened,
        "failures": outcome.failures,
    })
}
