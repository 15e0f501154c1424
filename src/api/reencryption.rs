//! Steps of `reencrypt`, and the contexts of columns.

use pgrx::pg_sys::Oid;

use super::given;
use crate::error::Error;
use crate::pg;
use crate::pg::heap::RowId;
use crate::pg::spi::{self, Parameter};
use crate::pg::values::Varlena;
use crate::pg::{json, locks, security};
use crate::rotation::{self, Batch, Limits};

pg::sql_functions! {
    reencrypt_batch(relation: oid, block: bigint, row_offset: bigint, end_block: bigint, max_rows: bigint,
                    max_bytes: bigint, only_compromised: boolean, contexts: text, careful: boolean) -> text;
    reencrypt_position() -> text;
    set_column_context(relation: regclass, column_name: name, constant: text, expression: text) -> void;
    store_column_context(table_name: text, column_name: text, constant: text, expression: text,
                         table_owner: text) -> void;
    hold_run(run: bigint) -> void;
    release_run() -> void;
}

/// One batch of one table, in the transaction of the caller.
#[expect(clippy::too_many_arguments, reason = "what a batch is to do")]
fn reencrypt_batch(
    relation: Option<Oid>,
    block: Option<i64>,
    row_offset: Option<i64>,
    end_block: Option<i64>,
    max_rows: Option<i64>,
    max_bytes: Option<i64>,
    only_compromised: Option<bool>,
    contexts: Option<&[u8]>,
    careful: Option<bool>,
) -> Result<Option<Varlena>, Error> {
    let block_number =
        |number| Ok::<_, Error>(u32::try_from(given(number, "a number")?).unwrap_or(u32::MAX - 1));
    let most = |number| Ok::<_, Error>(i64::max(given(number, "a number")?, 1) as u64);
    let done = rotation::run(&Batch {
        relation: given(relation, "relation")?,
        from: RowId { block: block_number(block)?, offset: given(row_offset, "a number")? as u16 },
        limits: Limits {
            end_block: block_number(end_block)?,
            rows: most(max_rows)?,
            bytes: most(max_bytes)?,
        },
        only_compromised: only_compromised.unwrap_or(false),
        contexts: contexts.unwrap_or(b"{}"),
        is_careful: careful.unwrap_or(false),
    })?;
    json::to_text(&done).map(Some)
}

/// The row that a failed batch was at, and whether the error is of the owner's code.
fn reencrypt_position() -> Result<Option<Varlena>, Error> {
    json::to_text(&rotation::position()).map(Some)
}

/// The expression will run as the table's owner, so nobody else may say what it is.
fn set_column_context(
    relation: Option<Oid>,
    column_name: Option<&[u8]>,
    constant: Option<&[u8]>,
    expression: Option<&[u8]>,
) -> Result<(), Error> {
    rotation::set_context(
        given(relation, "relation")?,
        given(column_name, "column_name")?,
        given(constant, "constant")?,
        given(expression, "expression")?,
    )
}

/// Remembers, or forgets, what a column is bound to.
fn store_column_context(
    table_name: Option<&[u8]>,
    column_name: Option<&[u8]>,
    constant: Option<&[u8]>,
    expression: Option<&[u8]>,
    table_owner: Option<&[u8]>,
) -> Result<(), Error> {
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
    })?;
    Ok(())
}

/// Shows to others that this session runs a re-encryption, until it ends or fails.
fn hold_run(run: Option<i64>) -> Result<(), Error> {
    locks::hold(given(run, "a number")? as u32)
}

/// The run is over.
fn release_run() -> Result<(), Error> {
    locks::release();
    Ok(())
}
