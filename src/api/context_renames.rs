//! Contexts that follow the renames of what they are remembered by.

use crate::rotation::{self, note_alter};

crate::pg::sql_functions! {
    renamed_expression(relation: oid!, expression: text!, old_table: text!, old_columns: text!) -> text
        = rotation::renamed_expression;
    event_trigger note_alter;
}
