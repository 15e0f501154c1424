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

/// What a queue keeps about the database that has it. The next one begins without it.
#[derive(Debug)]
pub(crate) struct Kept {
    pub queued: AtomicU64,
    pub overflowed: AtomicU64,
    pub overflowed_in_all: AtomicU64,
    pub crashed: AtomicU64,
    pub wanted: AtomicBool,
    pub dropped: AtomicBool,
    pub failures: AtomicU32,
    pub not_before: AtomicI64,
    pub yield_until: AtomicI64,
    pub look_again_at: AtomicI64,
    pub quiet_since: AtomicI64,
    pub written_at: AtomicI64,
    pub checkpoint_at: AtomicI64,
    pub checkpoint_size: AtomicU64,
    /// The most that any checkpoint stated, also after smaller ones.
    pub sealed_until: AtomicU64,
    /// Under the lock of the queue.
    pub problem: Text<PROBLEM>,
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

impl Kept {
    fn new() -> Self {
        Self {
            queued: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
            overflowed_in_all: AtomicU64::new(0),
            crashed: AtomicU64::new(0),
            wanted: AtomicBool::new(false),
            dropped: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            not_before: AtomicI64::new(0),
            yield_until: AtomicI64::new(0),
            look_again_at: AtomicI64::new(0),
            quiet_since: AtomicI64::new(0),
            written_at: AtomicI64::new(0),
            checkpoint_at: AtomicI64::new(0),
            checkpoint_size: AtomicU64::new(0),
            sealed_until: AtomicU64::new(0),
            problem: Text::new(),
        }
    }

    /// Forgets all of it. Whoever adds a field is asked for it here by the compiler.
    pub fn forget(&self) {
        let Self {
            queued,
            overflowed,
            overflowed_in_all,
            crashed,
            wanted,
            dropped,
            failures,
            not_before,
            yield_until,
            look_again_at,
            quiet_since,
            written_at,
            checkpoint_at,
            checkpoint_size,
            sealed_until,
            problem,
        } = self;
        for count in [queued, overflowed, overflowed_in_all, crashed, checkpoint_size, sealed_until]
        {
            count.store(0, Ordering::Relaxed);
        }
        for time in [not_before, yield_until, look_again_at, quiet_since, written_at, checkpoint_at]
        {
            time.store(0, Ordering::Relaxed);
        }
        for flag in [wanted, dropped] {
            flag.store(false, Ordering::Relaxed);
        }
        failures.store(0, Ordering::Relaxed);
        problem.clear();
    }
}
