//! How many values of each column are on which key.

use pgrx::pg_sys::Oid;

use super::given;
use crate::error::Error;
use crate::pg::json;
use crate::pg::values::Varlena;
use crate::{pg, rotation};

pg::sql_functions! {
    count_keys(relation: oid) -> text;
}

fn count_keys(relation: Option<Oid>) -> Result<Option<Varlena>, Error> {
    json::to_text(&rotation::count_keys(given(relation, "relation")?)?).map(Some)
}
