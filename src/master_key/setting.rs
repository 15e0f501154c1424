//! `fieldcrypt.master_key`: the key in the configuration file itself.

use crate::error::Error;
use crate::settings;

/// Copies the setting into `buffer`.
pub fn read(buffer: &mut [u8]) -> Result<usize, Error> {
    let text = settings::master_key().ok_or(Error::NoMasterKey)?;
    let length = text.len().min(buffer.len());
    buffer[..length].copy_from_slice(&text[..length]);
    Ok(length)
}
