//! Other nodes: where keys come from that are not made here.

use crate::error::Error;
use crate::pg::key_table::Purpose;
use crate::pg::nodes;

crate::pg::sql_functions! {
    keys_from(purpose: text!) -> text;
    refuse_unless_made_here(purpose: text!) -> void;
}

fn keys_from(purpose: &[u8]) -> Result<Option<String>, Error> {
    Ok(nodes::keys_from(known(purpose)?)?.map(|from| from.to_string()))
}

fn refuse_unless_made_here(purpose: &[u8]) -> Result<(), Error> {
    nodes::refuse_unless_made_here(known(purpose)?)
}

fn known(purpose: &[u8]) -> Result<Purpose, Error> {
    Purpose::parse(purpose).ok_or(Error::UnknownPurpose)
}
