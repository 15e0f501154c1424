//! Values: sealed, opened, and moved to the active key. They follow the keys, and change none.

mod bound;
mod context;
mod just_sealed;
mod open;
mod reencrypt;
mod seal;

pub use bound::{
    DECRYPT, ENCRYPT, REENCRYPT, is_just_bound, is_place_of, open_bound, open_recorded,
    reencrypt_bound, seal_bound, seal_loose, take_out, take_out_loose, tenant_of, verify_bound,
};
pub use context::{MAX_CONTEXT_BYTES, with_context};
pub use just_sealed::init;
pub use open::open;
pub use reencrypt::{Standing, rebind, reencrypt, standing, verify_in_context};
pub use seal::{seal, tenant_of_call, tenant_of_key};
