//! Steps of `reencrypt`, which has the loop.

use pgrx::pg_sys::Oid;
use serde_json::Value;

use crate::error::Error;
use crate::pg::heap::RowId;
use crate::rotation::{self, Batch, Limits};

crate::pg::sql_functions! {
    reencrypt_batch(relation: oid!, block: bigint!, row_offset: bigint!, end_block: bigint!, max_rows: bigint!,
                    max_bytes: bigint!, only_compromised: boolean, contexts: text, careful: boolean) -> text;
    reencrypt_position() -> text;
}

/// One batch of one table, in the transaction of the caller.
#[expect(clippy::too_many_arguments, reason = "what a batch is to do")]
fn reencrypt_batch(
    relation: Oid,
    block: i64,
    row_offset: i64,
    end_block: i64,
    max_rows: i64,
    max_bytes: i64,
    only_compromised: Option<bool>,
    contexts: Option<&[u8]>,
    careful: Option<bool>,
) -> Result<Value, Error> {
    let block_number = |number| u32::try_from(number).unwrap_or(u32::MAX - 1);
    let most = |number: i64| number.max(1) as u64;
    rotation::run(&Batch {
        relation,
        from: RowId { block: block_number(block), offset: row_offset as u16 },
        limits: Limits {
            end_block: block_number(end_block),
            rows: most(max_rows),
            bytes: most(max_bytes),
        },
        only_compromised: only_compromised.unwrap_or(false),
        contexts: contexts.unwrap_or(b"{}"),
        is_careful: careful.unwrap_or(false),
    })
}

/// The row that a failed batch was at, and whether the error is of the owner's code.
fn reencrypt_position() -> Result<Value, Error> {
    Ok(rotation::position())
}
