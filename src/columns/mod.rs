//! Protected columns: how they are declared, and how values come into their rows.

mod bind;
mod declare;
mod loosen;

pub use bind::bind;
pub use declare::{Wanted, create_loose_key, declarations, protect, unprotect};
pub use loosen::loosen;
