//! Columns that are encrypted into others: the trigger that keeps both alike, the steps, and what verifies them.

use pgrx::pg_sys::Datum;

use crate::columns;
use crate::error::Error;
use crate::pg::text_forms::AnyValue;
use crate::pg::triggers::TriggerCall;

crate::pg::sql_functions! {
    column_migration_step(relation: regclass!, step: text!, arguments: text!) -> text = columns::migration_step;
    is_sealed_as(value: encrypted, place: text, plaintext: anything!, modifier: integer) -> boolean;
    trigger carry_column;
}

fn is_sealed_as(
    value: Option<&[u8]>,
    place: Option<&[u8]>,
    plaintext: AnyValue,
    modifier: Option<i32>,
) -> Result<bool, Error> {
    columns::is_sealed_as(value, place, &plaintext, modifier)
}

/// BEFORE INSERT and UPDATE, for each row.
fn carry_column(trigger: &TriggerCall) -> Result<Option<Datum>, Error> {
    columns::carry(trigger)
}
