//! Views that show protected columns decrypted, and take what is written to them.

use pgrx::pg_sys::{Datum, Oid};

use crate::columns;
use crate::error::Error;
use crate::pg::triggers::TriggerCall;

crate::pg::sql_functions! {
    create_decrypted_view(relation: regclass!, view_name: text, columns: texts) -> void;
    trigger write_decrypted_view;
}

fn create_decrypted_view(
    relation: Oid,
    name: Option<&[u8]>,
    columns: Option<Vec<&[u8]>>,
) -> Result<(), Error> {
    columns::create_view(relation, name, columns.as_deref())
}

/// INSTEAD OF INSERT, UPDATE and DELETE, for each row.
fn write_decrypted_view(trigger: &TriggerCall) -> Result<Option<Datum>, Error> {
    columns::write_view(trigger)
}
