//! What the log may tell of this session: marks that stay until the transaction has ended, and what is
//! logged of its last statement with it.
//!
//! A mark says that the transaction touched encrypted values, or that it can't be told. It is set by the
//! doors of the extension, and where statements begin; nothing takes it back. Nothing here can fail.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;

use pgrx::pg_sys;

use super::clock;

/// Marked while the transaction lasts.
const IN_TRANSACTION: i64 = i64::MAX;
/// Marked as long as the process lives.
const FOR_EVER: i64 = i64::MAX - 1;
const NOT: i64 = i64::MIN;

/// A cursor WITH HOLD keeps what it read.
struct Cursor {
    name: [u8; pg_sys::NAMEDATALEN as usize],
    /// Whether the transaction that declared it touched values, and is committed.
    holds_values: bool,
}

thread_local! {
    /// Or the time at which the client's statement began in which a marked transaction ended.
    static MARK: Cell<i64> = const { Cell::new(NOT) };
    static CHECKED: Cell<i64> = const { Cell::new(NOT) };
    static CURSORS: RefCell<Vec<Cursor>> = const { RefCell::new(Vec::new()) };
}

/// Marks the transaction.
#[inline]
pub fn mark() {
    if MARK.get() != FOR_EVER {
        MARK.set(IN_TRANSACTION);
    }
}

/// Whether it is marked already.
#[inline]
pub fn is_transaction_marked() -> bool {
    MARK.get() >= FOR_EVER
}

/// Whether what is logged now belongs to a marked transaction, or to the statement that ended one, or values
/// are still held.
pub fn is_marked() -> bool {
    is_transaction_marked() || MARK.get() == clock::statement_start() || holds_values()
}

/// Notes that the statement was looked at, with names that were up to date, and found to be about other things.
#[inline]
pub fn set_checked() {
    CHECKED.set(clock::statement_start());
}

/// Whether names were up to date since the client's last message came: what was read before another session's
/// change does not know of it. With its text, also if the message began the transaction.
pub fn is_checked(has_text: bool) -> bool {
    let start = clock::statement_start();
    // SAFETY: reads a variable of the backend.
    let transaction = unsafe { pg_sys::GetCurrentTransactionStartTimestamp() };
    CHECKED.get() == start || (has_text && transaction == start)
}

/// The transaction is over: what the log still tells of its last statement belongs to it.
pub(super) fn transaction_ended(is_committed: bool) {
    let is_marked = is_transaction_marked();
    if MARK.get() == IN_TRANSACTION {
        MARK.set(clock::statement_start());
    }
    // Not where the thread's variables are gone: at the exit of the process.
    let _ = CURSORS.try_with(|cursors| {
        if let Ok(mut cursors) = cursors.try_borrow_mut() {
            cursors.iter_mut().for_each(|one| one.holds_values |= is_committed && is_marked);
            cursors.retain(|one| one.holds_values);
        }
    });
}

/// A utility statement begins: of a cursor WITH HOLD the name is kept.
///
/// # Safety
///
/// The node is a utility statement.
pub(super) unsafe fn cursor_declared(node: *mut pg_sys::Node) {
    // SAFETY: by the contract; its name is a C string.
    let name = unsafe {
        if (*node).type_ != pg_sys::NodeTag::T_DeclareCursorStmt {
            return;
        }
        let cursor = node.cast::<pg_sys::DeclareCursorStmt>();
        if (*cursor).options as u32 & pg_sys::CURSOR_OPT_HOLD == 0 {
            return;
        }
        CStr::from_ptr((*cursor).portalname).to_bytes()
    };
    let mut cursor = Cursor { name: [0; pg_sys::NAMEDATALEN as usize], holds_values: false };
    let places = cursor.name.iter_mut().take(pg_sys::NAMEDATALEN as usize - 1);
    places.zip(name).for_each(|(to, from)| *to = *from);
    let is_kept = CURSORS.with(|cursors| {
        let Ok(mut cursors) = cursors.try_borrow_mut() else { return false };
        let is_room = cursors.try_reserve(1).is_ok();
        if is_room {
            cursors.push(cursor);
        }
        is_room
    });
    if !is_kept {
        MARK.set(FOR_EVER);
    }
}

/// Whether a cursor that read values is still open.
fn holds_values() -> bool {
    let held = CURSORS.try_with(|cursors| {
        let mut cursors = cursors.try_borrow_mut().ok()?;
        cursors.retain(|one| !one.holds_values || is_open(one));
        Some(cursors.iter().any(|one| one.holds_values))
    });
    held.ok().flatten().unwrap_or(true)
}

fn is_open(cursor: &Cursor) -> bool {
    // SAFETY: looks into a hash table of the session, by a name that ends with a zero byte.
    unsafe { !pg_sys::GetPortalByName(cursor.name.as_ptr().cast()).is_null() }
}
