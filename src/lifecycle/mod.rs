//! The life of keys: made, rotated, suspended, exported, wrapped anew, destroyed; each step recorded.

mod create;
mod drops;
pub mod export;
pub mod rewrap;
pub mod states;

pub use drops::init;

pub use create::{
    Rotation, ensure_active, ensure_loose, first_key_on_use, refuse_unknown_tenant, rotate,
    rotate_if_active,
};
