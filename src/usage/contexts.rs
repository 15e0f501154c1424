//! What the values are bound to that a statement decrypts, where that is recorded: a context is named once, with the
//! number of its values.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::settings;
use crate::error::Error;
use crate::pg::{encoding, reserve};

/// Contexts of one statement, and their bytes, after which they are told before it ends.
const KEPT: usize = 1000;
const KEPT_BYTES: usize = 128 << 10;
/// Of a longer one its beginning is named.
const LONGEST: usize = 500;
/// How many one row names, and of how many bytes: it must fit into the smallest queue many times.
const IN_A_ROW: usize = 100;
const BYTES_IN_A_ROW: usize = 4000;

thread_local! {
    /// How many this transaction has named.
    static NAMED: Cell<usize> = const { Cell::new(0) };
}

/// Those of a statement.
#[derive(Default)]
pub struct Contexts {
    by_tenant: BTreeMap<Rc<[u8]>, Counts>,
    count: usize,
    bytes: usize,
}

/// Contexts, and how many values were bound to each.
type Counts = BTreeMap<Vec<u8>, u64>;

/// Some that stand in one row, and how many values were bound to them.
#[derive(Default)]
pub struct Row {
    pub contexts: Vec<Vec<u8>>,
    pub values: u64,
}

/// The transaction is over. Called where nothing may fail.
pub fn transaction_ended() {
    NAMED.set(0);
}

/// A context as it is named.
pub fn name_of(context: &[u8]) -> Result<Vec<u8>, Error> {
    let (beginning, rest): (_, &[u8]) = match context.len() {
        0..=LONGEST => (context, b""),
        _ => (encoding::clipped(context, LONGEST), b"..."),
    };
    let mut name = Vec::new();
    reserve::may_fail(|| name.try_reserve_exact(beginning.len() + rest.len()))
        .map_err(|_| Error::OutOfMemory { what: "contexts of the audit log" })?;
    name.extend_from_slice(beginning);
    name.extend_from_slice(rest);
    Ok(name)
}

impl Contexts {
    /// A value was decrypted. Whether there are so many that they should be told.
    pub fn add(&mut self, tenant: Rc<[u8]>, context: &[u8]) -> Result<bool, Error> {
        let counts = self.by_tenant.entry(tenant).or_default();
        if context.len() <= LONGEST
            && let Some(count) = counts.get_mut(context)
        {
            *count += 1;
            return Ok(false);
        }
        let name = name_of(context)?;
        if let Some(count) = counts.get_mut(&name) {
            *count += 1;
        } else if NAMED.get() < settings::contexts() {
            NAMED.set(NAMED.get() + 1);
            self.count += 1;
            self.bytes += name.len();
            counts.insert(name, 1);
        }
        Ok(self.count >= KEPT || self.bytes >= KEPT_BYTES)
    }

    /// Takes those of a tenant, as they stand in rows.
    pub fn take(&mut self, tenant: &[u8]) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        let mut bytes = 0;
        for (context, values) in self.by_tenant.remove(tenant).unwrap_or_default() {
            let is_full = rows.last().is_none_or(|row| {
                row.contexts.len() >= IN_A_ROW || bytes + context.len() > BYTES_IN_A_ROW
            });
            if is_full {
                rows.push(Row::default());
                bytes = 0;
            }
            bytes += context.len();
            if let Some(row) = rows.last_mut() {
                row.contexts.push(context);
                row.values += values;
            }
        }
        rows
    }
}
