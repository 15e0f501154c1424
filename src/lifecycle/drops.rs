//! The end of all keys: dropping the extension, its keys, its type or its log is refused while there are keys.

use crate::error::Error;
use crate::pg::drops::{self, Dropped};
use crate::pg::{key_table, report};
use crate::settings;

/// Is told of drops.
pub fn init() {
    drops::init(refuse_while_keys_exist);
}

fn refuse_while_keys_exist(dropped: Dropped) -> Result<(), Error> {
    if !key_table::has_living_keys()? {
        return Ok(());
    }
    if !settings::allows_drop() {
        return Err(Error::KeysWouldBeLost);
    }
    // The log goes with them: what remains is the server's.
    if dropped == Dropped::Keys {
        report::log(
            "pg_fieldcrypt: the encryption keys of this database are dropped, as fieldcrypt.allow_drop allows",
        );
    }
    Ok(())
}
