//! The trigger that `audit_table` puts on a user's table.

use std::cell::RefCell;
use std::io::Write;
use std::rc::Rc;

use pgrx::pg_sys::{self, Datum, Oid};
use serde_json::{Map, Value};

use super::Details;
use super::pending::{self, Change, Changed, RowKey};
use crate::error::Error;
use crate::events::Event;
use crate::pg::encoding;
use crate::pg::json::{Jsonb, Scalar, in_database_encoding};
use crate::pg::known_relations::KnownRelations;
use crate::pg::triggers::{Operation, TriggerCall, is_encrypted, output, same_bytes};
use crate::pg::tuple::Row;

/// AFTER INSERT, UPDATE and DELETE for each row, and TRUNCATE. Columns are found by what they are
/// when the trigger fires, so renamed and added ones are right.
pub fn record_change(trigger: &TriggerCall) -> Result<(), Error> {
    let event = match trigger.operation() {
        Operation::Insert => Event::RowInserted,
        Operation::Update => Event::RowUpdated,
        Operation::Delete => Event::RowDeleted,
        Operation::Truncate => return record_truncate(trigger),
    };
    let table = Table::of(trigger)?;
    let (before, after) = trigger.rows();
    let key_of = |row: &Option<Row<'_>>| match row {
        Some(row) => table.key.of_row(row),
        None => Ok(None),
    };
    let (old_key, new_key) = (key_of(&before)?, key_of(&after)?);
    fn text<'k>(key: &'k Option<RowKey<'_>>) -> Option<&'k [u8]> {
        key.as_ref().map(|key| key.text.as_slice())
    }
    let moved = before.is_some() && after.is_some() && text(&old_key) != text(&new_key);
    pending::add(&Change {
        event,
        table_name: &table.name,
        partition_name: table.partition.as_ref(),
        row_key: new_key.as_ref().or(old_key.as_ref()),
        old_row_key: old_key.as_ref().filter(|_| moved),
        changed: &table.changed(before.as_ref(), after.as_ref()),
    })
}

fn record_truncate(trigger: &TriggerCall) -> Result<(), Error> {
    let (table, relation) = (trigger.root_name(), trigger.relation_name());
    super::record(
        Event::TableTruncated,
        &Details {
            table_name: Some(&table),
            partition_name: (relation != table).then_some(relation.as_slice()),
            ..Details::default()
        },
    )
}

/// What is to be known of a table, or a partition, to record changes of its rows.
struct Table {
    name: Rc<[u8]>,
    partition: Option<Rc<[u8]>>,
    key: Key,
    encrypted: Vec<(i16, Vec<u8>)>,
    /// Which of them changed, for rows that were seen lately: most of a statement's are alike.
    changed: RefCell<Vec<Rc<Changed>>>,
}

impl Table {
    /// Of `changed` at a time.
    const MOST: usize = 64;

    fn of(trigger: &TriggerCall) -> Result<Rc<Self>, Error> {
        thread_local! {
            static KNOWN: RefCell<KnownRelations<Table>> = const { RefCell::new(KnownRelations::new()) }
        }
        let look_up = || Self::look_up(trigger).map(Rc::new);
        KnownRelations::of(&KNOWN, trigger.relation(), look_up, drop)
    }

    fn look_up(trigger: &TriggerCall) -> Result<Self, Error> {
        let (name, partition) = (trigger.root_name(), trigger.relation_name());
        let columns = trigger.columns();
        let key = Key::of(&columns, &trigger.row_identity())?;
        let mut encrypted = Vec::new();
        for (number, name, type_oid) in columns {
            if is_encrypted(type_oid)? {
                encrypted.push((number, name));
            }
        }
        Ok(Self {
            partition: (partition != name).then(|| partition.into()),
            name: name.into(),
            key,
            encrypted,
            changed: RefCell::default(),
        })
    }

    /// The encrypted columns whose stored value changed.
    fn changed(&self, before: Option<&Row<'_>>, after: Option<&Row<'_>>) -> Rc<Changed> {
        let has_changed = |(number, _): &&(i16, Vec<u8>)| {
            let datum = |row: Option<&Row<'_>>| row.and_then(|row| row.datum(*number));
            !same_bytes(datum(before), datum(after))
        };
        let names: Vec<&Vec<u8>> =
            self.encrypted.iter().filter(has_changed).map(|(_, name)| name).collect();
        let mut known = self.changed.borrow_mut();
        if let Some(found) = known.iter().rfind(|one| one.0.iter().eq(names.iter().copied())) {
            return Rc::clone(found);
        }
        if known.len() >= Self::MOST {
            known.clear();
        }
        let changed = Rc::new(Changed(names.into_iter().cloned().collect()));
        known.push(Rc::clone(&changed));
        changed
    }
}

/// How a row's key is written: as `jsonb_out` does, in the database's encoding.
struct Key {
    columns: Vec<(i16, Vec<u8>, Oid)>,
    /// The same in the order of `jsonb`, if the names need no thought.
    plain: Option<Vec<KeyPart>>,
}

/// A column of a key.
struct KeyPart {
    name: Vec<u8>,
    number: i16,
    type_oid: Oid,
}

impl Key {
    fn of(columns: &[(i16, Vec<u8>, Oid)], key: &[i16]) -> Result<Self, Error> {
        let mut columns: Vec<_> =
            columns.iter().filter(|(number, ..)| key.contains(number)).cloned().collect();
        // jsonb orders names by length first.
        columns.sort_by(|(_, a, _), (_, b, _)| (a.len(), a).cmp(&(b.len(), b)));
        let is_plain = columns.iter().all(|(_, name, _)| is_plain(name));
        let plain = is_plain.then(|| {
            let parts = columns.iter().map(|(number, name, type_oid)| KeyPart {
                name: name.clone(),
                number: *number,
                type_oid: *type_oid,
            });
            parts.collect()
        });
        Ok(Self { columns, plain })
    }

    /// The key of a row; `None` where the table has none.
    fn of_row(&self, row: &Row<'_>) -> Result<Option<RowKey<'_>>, Error> {
        if self.columns.is_empty() {
            return Ok(None);
        }
        if let Some(plain) = self.plain.as_deref().and_then(|parts| plain_key(parts, row)) {
            return Ok(Some(plain));
        }
        let Some(object) = key_object(&self.columns, |number| row.datum(number))? else {
            return Ok(None);
        };
        let document = Jsonb::parse(&in_database_encoding(&object)?)?;
        Ok(Some(RowKey { document, text: document.to_text().to_vec() }))
    }
}

/// The key, if it is so simple that what `jsonb` makes of it can be told.
fn plain_key<'k>(parts: &[KeyPart], row: &Row<'_>) -> Option<RowKey<'k>> {
    let mut text = Vec::with_capacity(64);
    let mut members: Vec<(&[u8], Scalar)> = Vec::with_capacity(parts.len());
    for part in parts {
        let datum = row.datum(part.number)?;
        let value = match part.type_oid {
            pg_sys::INT2OID => Scalar::Integer((datum.value() as i16).into()),
            pg_sys::INT4OID => Scalar::Integer((datum.value() as i32).into()),
            pg_sys::INT8OID => Scalar::Integer(datum.value() as i64),
            pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::UUIDOID => {
                Scalar::Text(Some(output(datum, part.type_oid)).filter(|text| is_plain(text))?)
            }
            _ => return None,
        };
        text.extend_from_slice(if members.is_empty() { b"{\"" } else { b", \"" });
        text.extend_from_slice(&part.name);
        text.extend_from_slice(b"\": ");
        match &value {
            Scalar::Integer(number) => write!(text, "{number}").ok()?,
            Scalar::Text(value) => {
                text.push(b'"');
                text.extend_from_slice(value);
                text.push(b'"');
            }
        }
        members.push((&part.name, value));
    }
    text.push(b'}');
    Some(RowKey { document: Jsonb::object(&members), text })
}

/// Whether a text stands in JSON as it is, in every encoding of a database.
fn is_plain(text: &[u8]) -> bool {
    text.iter().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'))
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

fn json_value(text: &[u8], type_oid: Oid) -> Result<Value, Error> {
    let text = encoding::to_string(text)?;
    let is_integer = [pg_sys::INT2OID, pg_sys::INT4OID, pg_sys::INT8OID].contains(&type_oid);
    Ok(match text.parse::<i64>() {
        Ok(number) if is_integer => Value::from(number),
        _ => Value::String(text),
    })
}
