//! Values: sealed, opened, and moved to the active key. They follow the keys, and change none.

mod context;
mod open;
mod reencrypt;
mod seal;

pub use context::{MAX_CONTEXT_BYTES, with_context};
pub use open::open;
pub use reencrypt::{Standing, rebind, reencrypt, standing, verify};
pub use seal::{seal, tenant_of_call, tenant_of_key};
