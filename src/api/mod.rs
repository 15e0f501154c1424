//! The SQL functions, thin: arguments in, one call into the keyring, a datum out.

mod decrypt;
mod encrypt;
mod keys;

use fieldcrypt_envelope::Context;

use crate::error::Error;
use crate::pg::call::Call;
use crate::pg::encoding;

/// Bytes that a context may have: it names a place, it is not a document.
const MAX_CONTEXT_BYTES: usize = 1 << 20;

/// An argument that may be left out, but not be NULL: NULL is more often a slip than a wish.
fn given<'c>(call: &'c Call, index: usize, name: &'static str) -> Result<&'c [u8], Error> {
    match call.bytes(index) {
        Some(bytes) => Ok(bytes),
        None => Err(Error::NullArgument(name)),
    }
}

/// Calls `work` with the context argument: '' is none, a text is one part, in UTF-8.
fn with_context<R>(
    call: &Call,
    index: usize,
    work: impl FnOnce(&Context<'_>) -> Result<R, Error>,
) -> Result<R, Error> {
    match given(call, index, "context")? {
        b"" => work(&Context::NONE),
        text if text.len() > MAX_CONTEXT_BYTES => Err(Error::TooLong { what: "a context" }),
        text => {
            let utf8 = encoding::to_utf8(text)?;
            let part = [str::from_utf8(&utf8).map_err(|_| Error::NotUtf8)?];
            let context = Context::new(&part).ok_or(Error::TooLarge { bytes: text.len() })?;
            work(&context)
        }
    }
}
