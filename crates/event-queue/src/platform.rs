//! What the queues need from the system that they are in.

/// Locks, and a way to wake a process.
pub trait Platform: Copy {
    /// What a process sleeps on.
    type Latch;

    /// Runs `work` with a lock: alone, or with others that only read. What was done under a lock is seen
    /// by whoever has it next.
    fn locked<R>(&self, lock: Lock, mode: Mode, work: impl FnOnce() -> R) -> R;

    /// Wakes the process that sleeps on a latch, or is about to. The process may be gone.
    fn wake(&self, latch: *mut Self::Latch);
}

/// A lock. Whoever has the directory's may ask for a queue's, not the other way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// Which queue is whose.
    Directory,
    /// Of the queue with this number.
    Queue(usize),
}

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// With others that only read.
    Shared,
    /// Alone.
    Exclusive,
}
