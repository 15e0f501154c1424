//! What a queue tells people.

use crate::platform::{Mode, Platform};
use crate::queue::Queue;
use crate::slot::PROBLEM;
use crate::sync::Ordering;

/// What is seen of a queue.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Status {
    /// Bytes of the ring.
    pub bytes: u64,
    /// Bytes in use.
    pub used: u64,
    /// Events that were queued since the database has the queue.
    pub queued: u64,
    /// Events that found no room.
    pub overflowed: u64,
    /// Process id of the worker; 0 if none runs.
    pub worker: i32,
    /// When events were last written; 0 for never.
    pub written_at: i64,
    /// When the last checkpoint was stored; 0 for never since the server started.
    pub checkpoint_at: i64,
    /// Its size.
    pub checkpoint_size: u64,
    /// Why the last attempt failed.
    pub problem: Option<String>,
}

impl<P: Platform> Queue<'_, P> {
    /// For people.
    pub fn status(self) -> Status {
        let bytes = self.ring().len();
        self.still(Mode::Shared, || self.figures(bytes))
            .unwrap_or_else(|| Status { bytes, ..Status::default() })
    }

    fn figures(self, bytes: u64) -> Status {
        let kept = &self.slot().kept;
        let problem = String::from_utf8_lossy(&kept.problem.read()).into_owned();
        let (head, tail) = (self.head(), self.tail());
        Status {
            bytes,
            used: head.saturating_sub(tail),
            queued: kept.queued.load(Ordering::Relaxed),
            overflowed: kept.overflowed_in_all.load(Ordering::Relaxed),
            worker: self.worker().max(0),
            written_at: kept.written_at.load(Ordering::Relaxed),
            checkpoint_at: kept.checkpoint_at.load(Ordering::Relaxed),
            checkpoint_size: kept.checkpoint_size.load(Ordering::Relaxed),
            problem: (!problem.is_empty()).then_some(problem),
        }
    }

    /// Why something failed; `None` when it works again.
    pub fn set_problem(self, problem: Option<&str>) {
        let problem = problem.unwrap_or_default();
        let kept = &problem[..problem.floor_char_boundary(PROBLEM)];
        self.still(Mode::Exclusive, || {
            // It was cut to what there is room for.
            let _ = self.slot().kept.problem.set(kept.as_bytes());
        });
    }
}
