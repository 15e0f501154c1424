//! A step of `verify_values`, which has the loop.

use pgrx::pg_sys::Oid;
use serde_json::Value;

use crate::error::Error;
use crate::pg::heap::RowId;
use crate::rotation::{self, Stretch};

crate::pg::sql_functions! {
    verify_batch(relation: oid!, block: bigint!, row_offset: bigint!, end_block: bigint!, max_values: bigint!,
                 bindings: text!) -> text;
}

fn verify_batch(
    relation: Oid,
    block: i64,
    row_offset: i64,
    end_block: i64,
    max_values: i64,
    bindings: &[u8],
) -> Result<Value, Error> {
    let block_number = |number| u32::try_from(number).unwrap_or(u32::MAX - 1);
    rotation::verify(&Stretch {
        relation,
        from: RowId { block: block_number(block), offset: row_offset as u16 },
        end_block: block_number(end_block),
        max_values: max_values.max(1) as u64,
        bindings,
    })
}
