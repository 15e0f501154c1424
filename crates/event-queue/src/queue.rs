//! A queue of records: appending, reading, what found no room, and whose the queue is.

use crate::bytes::Ring;
use crate::directory::Queues;
use crate::platform::{Lock, Mode, Platform};
use crate::slot::Slot;
use crate::sync::{Ordering, fence};

/// The queue of a database. An idle queue goes to whoever needs one: what is said to it then, as to the queue
/// of the database that had it, is said to nobody. It does not change hands while it has a worker.
pub struct Queue<'m, P: Platform> {
    pub(crate) queues: Queues<'m, P>,
    pub(crate) index: usize,
    /// Whose it was when it was looked up.
    pub(crate) database: u32,
}

impl<P: Platform> Clone for Queue<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Platform> Copy for Queue<'_, P> {}

/// Why a queue did not take an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// There is no room.
    Full,
    /// It is another database's by now.
    Moved,
}

/// The queue is another database's by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved;

impl<'m, P: Platform> Queue<'m, P> {
    /// Its number.
    pub fn index(self) -> usize {
        self.index
    }

    /// The database that had it when it was looked up; 0 if it was nobody's.
    pub fn database(self) -> u32 {
        self.database
    }

    /// Whether that database has it still. Only its lock, or a worker, keeps it.
    pub(crate) fn is_still(self) -> bool {
        self.slot().database.load(Ordering::Acquire) == self.database
    }

    /// Appends a record. Wakes whoever writes it down.
    pub fn append(self, record: &[u8]) -> Result<(), Refused> {
        let (slot, ring) = (self.slot(), self.ring());
        let (room, needed) = (ring.len(), Ring::needed(record));
        let before = self.still(Mode::Exclusive, || {
            let (head, tail) =
                (slot.head.load(Ordering::Relaxed), slot.tail.load(Ordering::Acquire));
            if head - tail + needed > room {
                slot.kept.overflowed.fetch_add(1, Ordering::Relaxed);
                slot.kept.overflowed_in_all.fetch_add(1, Ordering::Relaxed);
                return Err(Refused::Full);
            }
            ring.put(head, record);
            slot.head.store(head + needed, Ordering::Release);
            slot.kept.queued.fetch_add(1, Ordering::Relaxed);
            Ok(head - tail)
        });
        let half = room / 2;
        match before.unwrap_or(Err(Refused::Moved)) {
            Err(Refused::Moved) => Err(Refused::Moved),
            Err(Refused::Full) => {
                self.wake();
                Err(Refused::Full)
            }
            Ok(used) => {
                // The worker looks by itself every now and then; it is woken when it may be asleep
                // with nothing to do, and when it is high time.
                if used == 0 || used <= half && used + needed > half {
                    self.wake();
                }
                Ok(())
            }
        }
    }

    /// Records from `from` on, up to `bytes` of them, and the position behind them. Only the worker, and
    /// the postmaster when nobody else is alive, may ask.
    pub fn records(self, from: u64, bytes: u64) -> (Vec<Vec<u8>>, u64) {
        let (ring, head) = (self.ring(), self.head());
        let mut position = from;
        let mut records = Vec::new();
        if head.wrapping_sub(from) > ring.len() {
            // Memory that a crashing process damaged.
            return (records, head);
        }
        while position < head && position - from < bytes {
            let Some((record, end)) = ring.record(position, head) else { return (records, head) };
            records.push(record);
            position = end;
        }
        (records, position)
    }

    /// Where reading begins.
    pub fn tail(self) -> u64 {
        self.slot().tail.load(Ordering::Acquire)
    }

    /// Where writing goes on.
    pub fn head(self) -> u64 {
        self.slot().head.load(Ordering::Acquire)
    }

    /// Whether events wait to be written.
    pub fn has_events(self) -> bool {
        self.head() != self.tail()
    }

    /// Up to where records may have been written down already, when a crash interrupts.
    pub fn committing(self) -> u64 {
        self.slot().committing.load(Ordering::Acquire)
    }

    /// The worker is about to commit what it wrote up to a position.
    pub fn will_commit(self, position: u64) {
        self.slot().committing.store(position, Ordering::Release);
    }

    /// What comes before a position is written down, and with it so many events that found no room.
    pub fn written(self, position: u64, overflowed: u64, crashed: u64, now: i64) {
        let slot = self.slot();
        self.still(Mode::Shared, || {
            slot.tail.store(position, Ordering::Release);
            slot.kept.overflowed.fetch_sub(overflowed, Ordering::Relaxed);
            slot.kept.crashed.fetch_sub(crashed, Ordering::Relaxed);
            slot.kept.written_at.store(now, Ordering::Relaxed);
            slot.kept.failures.store(0, Ordering::Relaxed);
        });
    }

    /// Events that found no room, and events that a crash sent to the server log, both not told yet.
    pub fn gaps(self) -> (u64, u64) {
        let kept = &self.slot().kept;
        (kept.overflowed.load(Ordering::Relaxed), kept.crashed.load(Ordering::Relaxed))
    }

    fn is_idle(self) -> bool {
        self.worker() == 0 && !self.has_work() && !self.has_events()
    }

    /// Takes the queue for a database, if it is nobody's or idle. The caller has looked it up under the lock
    /// of the directory, which it holds; a session of the database that had it may append until it is locked
    /// here.
    pub(crate) fn begin(self, database: u32) -> Option<Self> {
        self.locked(Mode::Exclusive, || {
            let slot = self.slot();
            if self.database != 0 && !self.is_idle() {
                return None;
            }
            slot.tail.store(slot.head.load(Ordering::Acquire), Ordering::Release);
            slot.kept.forget();
            // A question that its worker did not live to read the answer of was the other database's.
            slot.answered.store(slot.asked.load(Ordering::Acquire), Ordering::Release);
            slot.database.store(database, Ordering::Release);
            Some(Self { database, ..self })
        })
    }

    /// Gives the queue of a database that is gone to whoever needs one, unless it has a worker or events.
    pub fn end(self) {
        self.queues.platform.locked(Lock::Directory, Mode::Exclusive, || {
            self.still(Mode::Exclusive, || {
                if self.worker() == 0 && !self.has_events() {
                    self.slot().database.store(0, Ordering::Release);
                }
            })
        });
    }

    /// Wakes the worker, or the launcher if there is none. What was stored before is seen by a worker that is
    /// just coming and whose latch is not seen here yet, and after a worker that is just leaving and whose
    /// latch is still seen: each of them has a fence between what it does to its latch and the next look.
    pub(crate) fn wake(self) {
        fence(Ordering::SeqCst);
        let latch = self.slot().worker_latch.load(Ordering::Acquire);
        if latch.is_null() { self.queues.wake_launcher() } else { self.queues.wake(latch) }
    }

    pub(crate) fn slot(self) -> &'m Slot<P::Latch> {
        self.queues.slot(self.index)
    }

    pub(crate) fn ring(self) -> Ring<'m> {
        self.queues.ring(self.index)
    }

    /// Runs `work` with the lock of the queue, if the database has it still.
    pub(crate) fn still<R>(self, mode: Mode, work: impl FnOnce() -> R) -> Option<R> {
        self.locked(mode, || self.is_still().then(work))
    }

    pub(crate) fn locked<R>(self, mode: Mode, work: impl FnOnce() -> R) -> R {
        self.queues.platform.locked(Lock::Queue(self.index), mode, work)
    }
}
