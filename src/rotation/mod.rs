//! Stored values and their keys: which keys a table still uses, and bringing it to the active ones.
//!
//! The loops that commit are in `sql/`; here is what one of their steps does.

mod batch;
mod column;
mod usage;

use std::cell::{Cell, RefCell};

use pgrx::pg_sys::{Datum, Oid};

use crate::error::Error;
use crate::pg::call::{Call, sql_functions};
use crate::pg::heap::RowId;
use crate::pg::spi::{self, Parameter};
use crate::pg::{json, locks, report, session};
use batch::{Batch, Limits};

sql_functions! {
    fieldcrypt_reencrypt_batch, pg_finfo_fieldcrypt_reencrypt_batch => reencrypt_batch;
    fieldcrypt_reencrypt_position, pg_finfo_fieldcrypt_reencrypt_position => reencrypt_position;
    fieldcrypt_set_column_context, pg_finfo_fieldcrypt_set_column_context => set_column_context;
    fieldcrypt_store_column_context, pg_finfo_fieldcrypt_store_column_context => store_column_context;
    fieldcrypt_hold_run, pg_finfo_fieldcrypt_hold_run => hold_run;
    fieldcrypt_release_run, pg_finfo_fieldcrypt_release_run => release_run;
    fieldcrypt_count_keys, pg_finfo_fieldcrypt_count_keys => count_keys;
}

thread_local! {
    /// The row that a batch was at, for who finds out why it failed.
    static POSITION: Cell<Option<RowId>> = const { Cell::new(None) };
    static ROW_KEY: RefCell<Option<serde_json::Value>> = const { RefCell::new(None) };
}

/// `reencrypt_batch`: one batch of one table, in the transaction of the caller.
fn reencrypt_batch(call: &Call) -> Result<Option<Datum>, Error> {
    POSITION.set(None);
    ROW_KEY.set(None);
    session::forget_owners_code();
    let from = RowId { block: block(call, 1)?, offset: number(call, 2)? as u16 };
    let limits = Limits {
        end_block: block(call, 3)?,
        rows: number(call, 4)?.max(1) as u64,
        bytes: number(call, 5)?.max(1) as u64,
    };
    let batch = Batch {
        relation: relation(call)?,
        from,
        limits,
        only_compromised: call.boolean(6).unwrap_or(false),
        contexts: call.bytes(7).unwrap_or(b"{}"),
        is_careful: call.boolean(8).unwrap_or(false),
    };
    json::to_datum(&report::catchable(|| batch.run())?).map(Some)
}

/// `reencrypt_position`: the row that a failed batch was at, and whether the error is of the owner's code.
fn reencrypt_position(_: &Call) -> Result<Option<Datum>, Error> {
    let row = POSITION.get();
    let position = serde_json::json!({
        "block": row.map(|row| row.block),
        "offset": row.map(|row| row.offset),
        "row_key": ROW_KEY.take(),
        "in_owners_code": session::failed_in_owners_code(),
    });
    json::to_datum(&position).map(Some)
}

/// `set_column_context`: the expression will run as the table's owner, so nobody else may say what it
/// is. The rights of the moment count, which those of the session may exceed.
fn set_column_context(call: &Call) -> Result<Option<Datum>, Error> {
    let relation = relation(call)?;
    let column = call.name(1).ok_or(Error::NullArgument("column_name"))?;
    let constant = call.bytes(2).ok_or(Error::NullArgument("constant"))?;
    let expression = call.bytes(3).ok_or(Error::NullArgument("expression"))?;
    session::refuse_for_planted_code()?;
    batch::refuse_unless_owner(relation)?;
    if !expression.is_empty() {
        batch::check_context(relation, expression)?;
    }
    session::as_owner(|| {
        spi::execute(
            "SELECT fieldcrypt_internal.remember_column_context($1::pg_catalog.oid, $2, $3, $4)",
            &[
                Parameter::BigInt(Some(i64::from(relation.to_u32()))),
                Parameter::Text(Some(column)),
                Parameter::Text(Some(constant)),
                Parameter::Text(Some(expression)),
            ],
        )
    })?;
    Ok(Some(Datum::null()))
}

/// `store_column_context`: remembers, or forgets, what a column is bound to.
fn store_column_context(call: &Call) -> Result<Option<Datum>, Error> {
    let (table, column) = (Parameter::Text(call.bytes(0)), Parameter::Text(call.bytes(1)));
    let (constant, expression) = (call.bytes(2), call.bytes(3));
    session::as_owner(|| {
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
                Parameter::Text(call.bytes(4)),
            ],
        )
    })?;
    Ok(Some(Datum::null()))
}

/// `hold_run`: shows to others that this session runs a re-encryption, until it ends or fails.
fn hold_run(call: &Call) -> Result<Option<Datum>, Error> {
    locks::hold(number(call, 0)? as u32)?;
    Ok(Some(Datum::null()))
}

/// `release_run`: the run is over.
fn release_run(_: &Call) -> Result<Option<Datum>, Error> {
    locks::release();
    Ok(Some(Datum::null()))
}

/// `count_keys`: how many values of each column are on which key.
fn count_keys(call: &Call) -> Result<Option<Datum>, Error> {
    json::to_datum(&usage::count(relation(call)?)?).map(Some)
}

fn relation(call: &Call) -> Result<Oid, Error> {
    let datum = call.datum(0).ok_or(Error::NullArgument("relation"))?;
    Ok(Oid::from(datum.value() as u32))
}

fn number(call: &Call, index: usize) -> Result<i64, Error> {
    call.bigint(index).ok_or(Error::NullArgument("a number"))
}

fn block(call: &Call, index: usize) -> Result<u32, Error> {
    Ok(u32::try_from(number(call, index)?).unwrap_or(u32::MAX - 1))
}
