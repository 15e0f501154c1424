//! What a value is bound to.

use fieldcrypt_envelope::Context;
pub use fieldcrypt_envelope::MAX_CONTEXT_BYTES;

use crate::error::Error;
use crate::pg::encoding;

/// Calls `work` with a context: '' is none, a text in the database's encoding is one part.
pub fn with_context<R>(
    text: &[u8],
    work: impl FnOnce(&Context<'_>) -> Result<R, Error>,
) -> Result<R, Error> {
    match text {
        b"" => work(&Context::NONE),
        text if text.len() > MAX_CONTEXT_BYTES => {
            Err(Error::TooLong { what: "a context", most: "1 MB" })
        }
        text => {
            let utf8 = encoding::to_utf8(text)?;
            let part = [str::from_utf8(&utf8).map_err(|_| Error::NotUtf8)?];
            let context = Context::new(&part).ok_or(Error::TooLarge { bytes: text.len() })?;
            work(&context)
        }
    }
}
