//! The SQL functions, thin: arguments in, one call into the keyring, a datum out.

mod approvals;
mod decrypt;
mod encrypt;
mod key_states;
mod keys;

use fieldcrypt_envelope::Context;

use crate::error::Error;
use crate::keyring;
use crate::pg::call::Call;

/// An argument that may be left out, but not be NULL: NULL is more often a slip than a wish.
fn given<'c>(call: &'c Call, index: usize, name: &'static str) -> Result<&'c [u8], Error> {
    match call.bytes(index) {
        Some(bytes) => Ok(bytes),
        None => Err(Error::NullArgument(name)),
    }
}

/// Calls `work` with the context argument.
fn with_context<R>(
    call: &Call,
    index: usize,
    work: impl FnOnce(&Context<'_>) -> Result<R, Error>,
) -> Result<R, Error> {
    keyring::with_context(given(call, index, "context")?, work)
}
