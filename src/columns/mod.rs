//! Protected columns: how they are declared, and how values come into their rows.

mod bind;
mod declare;
mod loosen;
mod twins;
mod views;
mod write_view;

pub use bind::bind;
pub use declare::{
    Wanted, create_loose_key, declarations, declared, note_declarations, on_table, protect,
    unprotect,
};
pub use loosen::loosen;
pub use twins::{carry, is_sealed_as, step as migration_step};
pub use views::create_view;
pub use write_view::write_view;
