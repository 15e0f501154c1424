//! The contexts that columns are bound to. The expression will run as the table's owner, so nobody else may say
//! what it is.

use crate::rotation;

crate::pg::sql_functions! {
    set_column_context(relation: regclass!, column_name: name!, constant: words!, expression: words!,
                       enforce: boolean!) -> void
        = rotation::set_context;
}
