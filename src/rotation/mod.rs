//! Stored values and their keys: which keys a table still uses, and bringing it to the active ones.
//!
//! The loops that commit are in `sql/`; here is what one of their steps does.

mod batch;
mod column;
mod context;
mod failure;
mod renames;
mod usage;
mod verify;

pub use batch::{Batch, Limits, position, run};
pub use context::{renamed_expression, set_context};
pub use renames::note_alter;
pub use usage::count as count_keys;
pub use verify::{Stretch, verify};
