//! How many values of each column are on which key.

use crate::rotation;

crate::pg::sql_functions! {
    count_keys(relation: oid!) -> text = rotation::count_keys;
}
