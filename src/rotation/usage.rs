//! How many values are on which key.

use std::collections::HashMap;
use std::ops::ControlFlow;

use fieldcrypt_envelope::{AnyCiphertext, KeyId, ciphertext};
use pgrx::pg_sys::Oid;
use serde_json::{Value, json};

use super::column::{Holder, holders};
use crate::error::Error;
use crate::pg::heap::{self, Access, Glimpse, RowId, Scan, Stop, Table};
use crate::pg::memory::Scratch;
use crate::pg::{encoding, transaction};

/// No block is beyond it: where the table ends is looked up after the snapshot is taken, so that no row
/// that the snapshot sees lies behind the end.
const WHOLE_TABLE: u32 = u32::MAX;

/// Rows after which a scan lets a cancel through.
const ROWS_AT_ONCE: u64 = 100_000;

/// Counts by reading the whole relation in the newest snapshot: no policy hides a row.
///
/// Values that are malformed are counted under no key.
pub fn count(relation: Oid) -> Result<Value, Error> {
    let Some(table) = Table::open(relation, Access::Read) else { return Ok(json!([])) };
    heap::refuse_unless_scannable(&table)?;
    let holders = holders(&table)?;
    let mut counts: Vec<HashMap<Option<KeyId>, u64>> = vec![HashMap::new(); holders.len()];
    if !holders.is_empty() {
        let scratch = Scratch::new();
        let mut scan = Scan::begin(
            &table,
            RowId::start_of(0),
            WHOLE_TABLE,
            holders.iter().map(Holder::look).collect(),
        );
        loop {
            let stop = scan.next(ROWS_AT_ONCE, |index, glimpse| {
                let key_id = match glimpse {
                    Glimpse::Header(header) => {
                        ciphertext::suite_and_key_id(header).ok().map(|(_, key_id)| key_id)
                    }
                    Glimpse::Malformed => None,
                    Glimpse::Nested => return ControlFlow::Break(()),
                };
                if let Some(counts) = counts.get_mut(index) {
                    *counts.entry(key_id).or_default() += 1;
                }
                ControlFlow::Continue(())
            });
            match stop {
                Stop::End => break,
                Stop::Pause => transaction::check_for_interrupts(),
                Stop::Row(_) => scratch.run(|| {
                    let row = scan.row();
                    for (holder, counts) in holders.iter().zip(&mut counts) {
                        let at = holder.column.number as usize - 1;
                        let Some(datum) = row.get(at).copied().flatten() else { continue };
                        if !holder.shape.is_nested() {
                            continue;
                        }
                        holder.shape.visit(datum, &mut |bytes| {
                            let key_id =
                                AnyCiphertext::parse(bytes).map(|value| value.key_id()).ok();
                            *counts.entry(key_id).or_default() += 1;
                            Ok(())
                        })?;
                    }
                    Ok::<_, Error>(())
                })?,
            }
        }
        scan.finish();
        scratch.end();
    }
    table.close();
    let found = holders.iter().zip(&counts).flat_map(|(holder, counts)| {
        counts.iter().map(|(key_id, values)| {
            json!({
                "attnum": holder.column.number,
                "column": encoding::lossy(&holder.column.name),
                "key_id": key_id.map(|key_id| key_id.to_string()),
                "values": values,
            })
        })
    });
    Ok(Value::Array(found.collect()))
}
