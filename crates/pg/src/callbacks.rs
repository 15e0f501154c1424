//! Ends of transactions and subtransactions.
//!
//! Nothing here can fail, or reads a catalog: an error in a transaction callback restarts the cluster, and
//! a relcache callback may only set a flag. Before a commit errors are still allowed.

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::OnceLock;

use fieldcrypt_error::Error;
use pgrx::pg_sys::{self, SubTransactionId, SubXactEvent, XactEvent};

use super::{call, marks, reserve};

/// What a room wants to be told of. Nothing in it may fail but `before_commit`, read a catalog or allocate
/// much.
#[derive(Clone, Copy)]
pub struct Listener {
    /// A transaction is about to be committed or prepared.
    pub before_commit: fn() -> Result<(), Error>,
    /// It was committed.
    pub committed: fn(),
    /// What it wrote is gone, or belongs to a prepared transaction.
    pub gone: fn(),
    /// It was rolled back, in a session.
    pub aborted: fn(),
    /// It is over, however it ended. Comes after all that is above.
    pub ended: fn(),
    /// What the first subtransaction wrote is the second one's now, its parent's.
    pub sub_committed: fn(SubTransactionId, SubTransactionId),
    /// What a subtransaction wrote is gone.
    pub sub_gone: fn(SubTransactionId),
}

impl Listener {
    /// Is told nothing.
    pub const DEAF: Self = Self {
        before_commit: || Ok(()),
        committed: || (),
        gone: || (),
        aborted: || (),
        ended: || (),
        sub_committed: |_, _| (),
        sub_gone: |_| (),
    };
}

/// Places for listeners: not of the heap, since transactions end also while a process exits.
const PLACES: usize = 16;
static LISTENERS: [OnceLock<Listener>; PLACES] = [const { OnceLock::new() }; PLACES];

thread_local! {
    static TRANSACTION_SERIAL: Cell<u64> = const { Cell::new(1) };
}

/// Adds a listener. They are told in the order in which they were added.
pub fn listen(listener: Listener) {
    let is_taken = LISTENERS.iter().any(|place| place.set(listener).is_ok());
    assert!(is_taken, "there is a place for every room");
}

fn listeners() -> impl Iterator<Item = &'static Listener> {
    LISTENERS.iter().map_while(OnceLock::get)
}

/// Registers the callbacks.
pub fn init() {
    reserve::fill_cushion();
    // SAFETY: the callbacks live as long as the library, which is never unloaded.
    unsafe {
        pg_sys::RegisterXactCallback(Some(at_transaction_event), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(at_subtransaction_event), std::ptr::null_mut());
    }
}

/// A number that no earlier transaction of this process had.
#[inline]
pub fn transaction_serial() -> u64 {
    TRANSACTION_SERIAL.get()
}

unsafe extern "C-unwind" fn at_transaction_event(event: XactEvent::Type, _: *mut c_void) {
    match event {
        XactEvent::XACT_EVENT_PRE_COMMIT
        | XactEvent::XACT_EVENT_PARALLEL_PRE_COMMIT
        | XactEvent::XACT_EVENT_PRE_PREPARE => {
            return call::raising(|| listeners().try_for_each(|one| (one.before_commit)()));
        }
        XactEvent::XACT_EVENT_COMMIT | XactEvent::XACT_EVENT_PARALLEL_COMMIT => {
            tell(|one| (one.committed)());
        }
        _ => tell(|one| (one.gone)()),
    }
    if event == XactEvent::XACT_EVENT_ABORT {
        tell(|one| (one.aborted)());
    }
    tell(|one| (one.ended)());
    reserve::forget_shortage();
    reserve::fill_cushion();
    marks::transaction_ended(event == XactEvent::XACT_EVENT_COMMIT);
    TRANSACTION_SERIAL.set(TRANSACTION_SERIAL.get() + 1);
}

unsafe extern "C-unwind" fn at_subtransaction_event(
    event: SubXactEvent::Type,
    subtransaction: SubTransactionId,
    parent: SubTransactionId,
    _: *mut c_void,
) {
    match event {
        SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => {
            tell(|one| (one.sub_committed)(subtransaction, parent));
        }
        SubXactEvent::SUBXACT_EVENT_ABORT_SUB => {
            tell(|one| (one.sub_gone)(subtransaction));
            reserve::fill_cushion();
        }
        _ => {}
    }
}

/// Nothing is expected to panic; what does is no reason to restart the cluster.
fn tell(what: impl Fn(&Listener)) {
    for listener in listeners() {
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| what(listener)));
    }
}
