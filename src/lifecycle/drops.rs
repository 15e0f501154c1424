//! The end of all keys: dropping the extension, its keys, its type or its log is refused while there are keys.

use std::cell::Cell;

use crate::error::Error;
use crate::pg::callbacks::transaction_serial;
use crate::pg::drops::{self, Dropped};
use crate::pg::{key_table, report, roles};
use crate::settings;

thread_local! {
    /// The transaction that was let drop the table of keys.
    static LET_GO: Cell<u64> = const { Cell::new(0) };
}

/// Is told of drops.
pub fn init() {
    drops::init(refuse_while_keys_exist);
}

fn refuse_while_keys_exist(dropped: Dropped) -> Result<(), Error> {
    // A table that is not found by its name is gone, has another, or was taken out of the extension: keys are lost with
    // that, too.
    let may_lose_keys =
        key_table::has_living_keys()?.unwrap_or_else(|| LET_GO.get() != transaction_serial());
    if may_lose_keys && !settings::allows_drop() {
        return Err(Error::KeysWouldBeLost);
    }
    if dropped == Dropped::Keys {
        LET_GO.set(transaction_serial());
        if may_lose_keys {
            // The log goes with them: what remains is the server's.
            // Quoted, so that no name looks like another line.
            let role = roles::login_role();
            report::log(&format!(
                "pg_fieldcrypt: the encryption keys of this database are dropped by {:?}, as fieldcrypt.allow_drop allows",
                String::from_utf8_lossy(&role)
            ));
        }
    }
    Ok(())
}
