//! What `audit_table` and `unaudit_table` saw before they began: a table is recorded as audited, or not any more,
//! only by who has changed that in this transaction.

use std::cell::Cell;

thread_local! {
    /// The table, and how many triggers it had.
    static NOTED: Cell<Option<(i64, i64)>> = const { Cell::new(None) };
}

/// Remembers how many triggers a table has.
pub fn remember(table: i64, triggers: i64) {
    NOTED.set(Some((table, triggers)));
}

/// What was remembered of a table in this transaction, once.
pub fn take(table: i64) -> Option<i64> {
    NOTED.take().filter(|(noted, _)| *noted == table).map(|(_, triggers)| triggers)
}

/// A transaction or a part of it is over. Called where nothing may fail.
pub fn forget() {
    let _ = NOTED.try_with(|noted| noted.set(None));
}
