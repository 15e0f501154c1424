//! Other nodes: where keys come from that are not made here, and what is not taken from a publisher.

use pgrx::pg_sys::Datum;

use crate::error::Error;
use crate::pg::key_table::Purpose;
use crate::pg::triggers::TriggerCall;
use crate::pg::{encoding, nodes, security};

crate::pg::sql_functions! {
    keys_from(purpose: text!) -> text;
    refuse_unless_made_here(purpose: text!) -> void;
    trigger keep_own;
    is_applying() -> boolean;
}

fn keys_from(purpose: &[u8]) -> Result<Option<String>, Error> {
    Ok(nodes::keys_from(known(purpose)?)?.map(|from| from.to_string()))
}

fn refuse_unless_made_here(purpose: &[u8]) -> Result<(), Error> {
    nodes::refuse_unless_made_here(known(purpose)?)
}

/// BEFORE each row, and TRUNCATE, of a table that is one database's own, where replication applies: what another database
/// has is left out, so that its subscription goes on. A TRUNCATE can't be left out, and is refused. What the extension
/// itself writes then passes: changes of a table whose triggers fire there, too, are recorded.
fn keep_own(trigger: &TriggerCall) -> Result<Option<Datum>, Error> {
    if !nodes::is_applying() || security::guards_are_open() {
        return Ok(Some(trigger.row_datum().unwrap_or(Datum::null())));
    }
    if trigger.is_for_each_row() {
        return Ok(Some(Datum::null()));
    }
    Err(Error::Guarded { table: encoding::lossy(&trigger.relation_name()) })
}

fn is_applying() -> Result<bool, Error> {
    Ok(nodes::is_applying())
}

fn known(purpose: &[u8]) -> Result<Purpose, Error> {
    str::from_utf8(purpose).ok().and_then(Purpose::parse).ok_or(Error::UnknownPurpose)
}
