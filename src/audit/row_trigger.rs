//! The trigger that `audit_table` puts on a user's table.

use pgrx::pg_sys::{self, Datum, Oid};
use serde_json::{Map, Value};

use super::Details;
use crate::error::Error;
use crate::events::Event;
use crate::pg::encoding;
use crate::pg::json::in_database_encoding;
use crate::pg::triggers::{Operation, TriggerCall, is_encrypted, output, same_bytes};
use crate::pg::tuple::Row;

/// AFTER INSERT, UPDATE and DELETE for each row, and TRUNCATE. Columns are found by what they are
/// when the trigger fires, so renamed and added ones are right.
pub fn record_change(trigger: &TriggerCall) -> Result<(), Error> {
    let event = match trigger.operation() {
        Operation::Insert => Event::RowInserted,
        Operation::Update => Event::RowUpdated,
        Operation::Delete => Event::RowDeleted,
        Operation::Truncate => Event::TableTruncated,
    };
    let table = trigger.root_name();
    let relation = trigger.relation_name();
    let (before, after) = trigger.rows();
    let columns = trigger.columns();
    let key_of = |row: &Option<Row<'_>>| match row {
        Some(row) => primary_key(trigger, &columns, row),
        None => Ok(None),
    };
    let (old_key, new_key) = (key_of(&before)?, key_of(&after)?);
    let moved = before.is_some() && after.is_some() && old_key != new_key;
    let old_row_key = if moved { old_key.clone() } else { None };
    let row_key = new_key.or(old_key);
    let changed = match (before.is_some(), after.is_some()) {
        (false, false) => None,
        _ => Some(changed_columns(&columns, before.as_ref(), after.as_ref())?),
    };
    super::record(
        event,
        &Details {
            table_name: Some(&table),
            partition_name: (relation != table).then_some(relation.as_slice()),
            row_key: row_key.as_deref(),
            old_row_key: old_row_key.as_deref(),
            changed_columns: changed.as_deref(),
            ..Details::default()
        },
    )
}

fn primary_key(
    trigger: &TriggerCall,
    columns: &[(i16, Vec<u8>, Oid)],
    row: &Row<'_>,
) -> Result<Option<Vec<u8>>, Error> {
    let key_columns = trigger.primary_key();
    let columns: Vec<_> =
        columns.iter().filter(|(number, ..)| key_columns.contains(number)).cloned().collect();
    key_object(&columns, |number| row.datum(number))?
        .map(|object| in_database_encoding(&object))
        .transpose()
}

/// The primary key of a row as a JSON object: its columns, as number, name and type; `None` without any.
pub fn key_object(
    columns: &[(i16, Vec<u8>, Oid)],
    datum: impl Fn(i16) -> Option<Datum>,
) -> Result<Option<Value>, Error> {
    let mut object = Map::new();
    for (number, name, type_oid) in columns {
        let value = match datum(*number) {
            Some(datum) => json_value(&output(datum, *type_oid), *type_oid)?,
            None => Value::Null,
        };
        object.insert(encoding::to_string(name)?, value);
    }
    Ok((!object.is_empty()).then_some(Value::Object(object)))
}

fn changed_columns(
    columns: &[(i16, Vec<u8>, Oid)],
    before: Option<&Row<'_>>,
    after: Option<&Row<'_>>,
) -> Result<Vec<Vec<u8>>, Error> {
    let mut names = Vec::new();
    for (number, name, type_oid) in columns {
        let datum = |row: Option<&Row<'_>>| row.and_then(|row| row.datum(*number));
        if is_encrypted(*type_oid)? && !same_bytes(datum(before), datum(after)) {
            names.push(name.clone());
        }
    }
    Ok(names)
}

fn json_value(text: &[u8], type_oid: Oid) -> Result<Value, Error> {
    let text = encoding::to_string(text)?;
    let is_integer = [pg_sys::INT2OID, pg_sys::INT4OID, pg_sys::INT8OID].contains(&type_oid);
    Ok(match text.parse::<i64>() {
        Ok(number) if is_integer => Value::from(number),
        _ => Value::String(text),
    })
}
