//! What a queue is in memory, besides its ring.

use crate::bytes::Text;
use crate::sync::{AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// The longest question to the launcher, and the longest answer.
pub const MESSAGE: usize = if cfg!(any(loom, miri)) { 2 } else { 16 * 1024 };
/// Bytes of a problem that are kept.
pub(crate) const PROBLEM: usize = if cfg!(loom) { 2 } else { 256 };

/// A queue, without its ring. It consists of atomics alone, so memory of zero bytes is a valid one: nobody's,
/// and empty. `L` is what a process sleeps on.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Slot<L> {
    /// Whose it is; 0 for nobody's.
    pub(crate) database: AtomicU32,
    /// The process id of its worker, -1 while one is being started, 0 for none.
    pub(crate) worker: AtomicI32,
    pub(crate) worker_latch: AtomicPtr<L>,
    /// Where writing goes on, and where reading begins.
    pub(crate) head: AtomicU64,
    pub(crate) tail: AtomicU64,
    pub(crate) committing: AtomicU64,
    /// Numbers of questions never go back, either: an answer that comes late is known by its own.
    pub(crate) asked: AtomicU64,
    pub(crate) answered: AtomicU64,
    /// The last question, or the answer to it. Under the lock of the queue.
    pub(crate) message: Text<MESSAGE>,
    pub(crate) kept: Kept,
}

/// Names once what a queue keeps: every field of it is forgotten, too.
macro_rules! kept {
    ($($(#[$what:meta])* $field:ident: $atomic:ident = $start:literal,)*) => {
        /// What a queue keeps about the database that has it. The next one begins without it.
        #[derive(Debug)]
        pub(crate) struct Kept {
            $($(#[$what])* pub $field: $atomic,)*
            /// Under the lock of the queue.
            pub problem: Text<PROBLEM>,
        }

        impl Kept {
            fn new() -> Self {
                Self { $($field: $atomic::new($start),)* problem: Text::new() }
            }

            /// Forgets all of it.
            pub fn forget(&self) {
                $(self.$field.store($start, Ordering::Relaxed);)*
                self.problem.clear();
            }
        }
    };
}

kept! {
    queued: AtomicU64 = 0,
    overflowed: AtomicU64 = 0,
    overflowed_in_all: AtomicU64 = 0,
    crashed: AtomicU64 = 0,
    wanted: AtomicBool = false,
    dropped: AtomicBool = false,
    failures: AtomicU32 = 0,
    not_before: AtomicI64 = 0,
    yield_until: AtomicI64 = 0,
    look_again_at: AtomicI64 = 0,
    quiet_since: AtomicI64 = 0,
    written_at: AtomicI64 = 0,
    checkpoint_at: AtomicI64 = 0,
    checkpoint_size: AtomicU64 = 0,
    /// The most that any checkpoint stated, also after smaller ones.
    sealed_until: AtomicU64 = 0,
    /// The last state of which an event told, as [`Queue::is_news`](crate::Queue::is_news) was given it.
    told: AtomicU64 = 0,
}

impl<L> Slot<L> {
    /// Nobody's.
    pub fn new() -> Self {
        Self {
            database: AtomicU32::new(0),
            worker: AtomicI32::new(0),
            worker_latch: AtomicPtr::new(std::ptr::null_mut()),
            head: AtomicU64::new(0),
            tail: AtomicU64::new(0),
            committing: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            message: Text::new(),
            kept: Kept::new(),
        }
    }
}

impl<L> Default for Slot<L> {
    fn default() -> Self {
        Self::new()
    }
}
