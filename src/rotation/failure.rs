//! Values that don't open, as they are told: which row, which key, why; never the value.

use fieldcrypt_envelope::{KeyId, ciphertext};
use pgrx::pg_sys::{Datum, Oid};
use serde_json::{Value, json};

use crate::audit;
use crate::error::Error;
use crate::pg::encoding;
use crate::pg::heap::{RowId, Table};

/// A value that failed, for the lists of failures.
pub fn failure(
    column: &[u8],
    row_key: Option<&Value>,
    row: RowId,
    key_id: Option<KeyId>,
    error: &Error,
) -> Value {
    let report = error.report();
    json!({
        "column": encoding::lossy(column),
        "row_key": row_key,
        "ctid": format!("({},{})", row.block, row.offset),
        "key_id": key_id.map(|key_id| key_id.to_string()),
        "error_code": report.sqlstate.as_str(),
        "error": report.message,
    })
}

/// The primary key of a table, by which rows are named to people.
pub struct RowKey {
    columns: Vec<(i16, Vec<u8>, Oid)>,
}

impl RowKey {
    /// Of a table.
    pub fn of(table: &Table) -> Self {
        let key = table.row_identity();
        let columns = table
            .columns()
            .into_iter()
            .filter(|column| key.contains(&column.number))
            .map(|column| (column.number, column.name, column.type_oid))
            .collect();
        Self { columns }
    }

    /// Of a row, by column number less one; `None` without a primary key.
    pub fn json(&self, row: &[Option<Datum>]) -> Result<Option<Value>, Error> {
        audit::row_trigger::key_object(&self.columns, |number| {
            row.get(number as usize - 1).copied().flatten()
        })
    }
}

/// The key of a value, as far as its header tells.
pub fn key_id_of(value: &[u8]) -> Option<KeyId> {
    let header = value.first_chunk::<{ ciphertext::HEADER_LENGTH }>()?;
    ciphertext::suite_and_key_id(header).ok().map(|(_, key_id)| key_id)
}
