//! Which version the library is of.

use crate::error::Error;
use crate::health;

crate::pg::sql_functions! {
    library_version() -> text;
}

fn library_version() -> Result<&'static str, Error> {
    Ok(health::version::LIBRARY)
}
