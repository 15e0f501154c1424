//! The contexts that columns are bound to. The expression will run as the table's owner, so nobody else may say
//! what it is.

use crate::error::Error;
use crate::pg::security;
use crate::pg::spi::{self, Parameter};
use crate::rotation;

crate::pg::sql_functions! {
    set_column_context(relation: regclass!, column_name: name!, constant: text!, expression: text!) -> void
        = rotation::set_context;
    store_column_context(table_name: text, column_name: text, constant: text, expression: text,
                         table_owner: text) -> void;
}

type Text<'c> = Option<&'c [u8]>;

/// Remembers, or forgets, what a column is bound to.
fn store_column_context(
    table_name: Text,
    column_name: Text,
    constant: Text,
    expression: Text,
    table_owner: Text,
) -> Result<u64, Error> {
    let [table, column] = [table_name, column_name].map(Parameter::Text);
    security::as_owner(|| {
        if constant.is_none() && expression.is_none() {
            return spi::execute(
                "DELETE FROM fieldcrypt.column_contexts
                  WHERE table_name OPERATOR(pg_catalog.=) $1 AND column_name OPERATOR(pg_catalog.=) $2",
                &[table, column],
            );
        }
        spi::execute(
            "INSERT INTO fieldcrypt.column_contexts (table_name, column_name, constant, expression, table_owner)
             VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT ON CONSTRAINT column_contexts_pkey DO UPDATE
                SET constant = excluded.constant, expression = excluded.expression,
                    table_owner = excluded.table_owner, set_by = excluded.set_by, set_at = excluded.set_at",
            &[
                table,
                column,
                Parameter::Text(constant),
                Parameter::Text(expression),
                Parameter::Text(table_owner),
            ],
        )
    })
}
