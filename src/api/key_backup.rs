//! Exports of the key table, and keys that come back from one.

use crate::error::Error;
use crate::lifecycle::export;

crate::pg::sql_functions! {
    seal_export(document: text!) -> text = export::seal;
    read_export(document: text!) -> text = export::read;
    import_keys(document: text!, apply_states: boolean, renumber: boolean) -> text;
    key_problem(key_id: key_id) -> text = export::problem_of;
    renumber_key(key_id: key_id!, version: integer!) -> void = export::renumber;
}

fn import_keys(
    document: &[u8],
    apply_states: Option<bool>,
    renumber: Option<bool>,
) -> Result<String, Error> {
    export::import(document, apply_states.unwrap_or(false), renumber.unwrap_or(false))
}
