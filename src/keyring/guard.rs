//! What a restore may fill: the extension's own tables, while they are empty.

use std::cell::RefCell;

use pgrx::pg_sys::Oid;

use crate::error::Error;
use crate::pg::triggers::TriggerCall;
use crate::pg::{encoding, security};

thread_local! {
    /// Tables that this session may fill: a dump with INSERT commands goes on with more rows.
    static RESTORED_HERE: RefCell<Vec<Oid>> = const { RefCell::new(Vec::new()) };
}

/// Refuses to insert into a table that is in use, unless the extension itself does it.
pub fn refuse_insert_if(
    trigger: &TriggerCall,
    is_in_use: impl FnOnce(&TriggerCall) -> Result<bool, Error>,
) -> Result<(), Error> {
    let relation = trigger.relation();
    let passes = security::guards_are_open()
        || RESTORED_HERE.with_borrow(|tables| tables.contains(&relation));
    if passes {
        return Ok(());
    }
    if is_in_use(trigger)? {
        return Err(Error::RestoreOverExisting {
            table: encoding::lossy(&trigger.relation_name()),
        });
    }
    RESTORED_HERE.with_borrow_mut(|tables| tables.push(relation));
    Ok(())
}

/// The database has made a key of its own: what is restored from now on would be over it.
pub fn end_restore() {
    RESTORED_HERE.with_borrow_mut(Vec::clear);
}
