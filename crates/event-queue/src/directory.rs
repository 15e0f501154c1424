//! All queues: which is whose, and the launcher that looks after them.

use std::cell::Cell;

use crate::bytes::Ring;
use crate::platform::{Lock, Mode, Platform};
use crate::queue::{Queue, Refused};
use crate::slot::Slot;
use crate::sync::{AtomicI32, AtomicPtr, AtomicU8, AtomicU64, Ordering, fence};

/// What there is once for all queues. It consists of atomics alone, so memory of zero bytes is a valid one.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Directory<L> {
    launcher: AtomicPtr<L>,
    launcher_process: AtomicI32,
    without_queue: AtomicU64,
}

impl<L> Directory<L> {
    /// Without a launcher.
    pub fn new() -> Self {
        Self {
            launcher: AtomicPtr::new(std::ptr::null_mut()),
            launcher_process: AtomicI32::new(0),
            without_queue: AtomicU64::new(0),
        }
    }
}

impl<L> Default for Directory<L> {
    fn default() -> Self {
        Self::new()
    }
}

/// All queues, as a process sees them.
pub struct Queues<'m, P: Platform> {
    pub(crate) platform: P,
    directory: &'m Directory<P::Latch>,
    slots: &'m [Slot<P::Latch>],
    rings: &'m [AtomicU8],
}

impl<P: Platform> Clone for Queues<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Platform> Copy for Queues<'_, P> {}

impl<'m, P: Platform> Queues<'m, P> {
    /// The queues in this memory. The bytes of the rings are shared out among them.
    pub fn new(
        platform: P,
        directory: &'m Directory<P::Latch>,
        slots: &'m [Slot<P::Latch>],
        rings: &'m [AtomicU8],
    ) -> Self {
        Self { platform, directory, slots, rings }
    }

    /// Each of them.
    pub fn all(self) -> impl Iterator<Item = Queue<'m, P>> {
        (0..self.slots.len()).filter_map(move |index| self.of_index(index))
    }

    /// The queue with this number, as whose it is now.
    pub fn of_index(self, index: usize) -> Option<Queue<'m, P>> {
        let database = self.slots.get(index)?.database.load(Ordering::Acquire);
        Some(Queue { queues: self, index, database })
    }

    /// The queue of a database, if it has one.
    pub fn of_database(self, database: u32) -> Option<Queue<'m, P>> {
        self.all().find(|queue| queue.database() == database)
    }

    /// The queue of a database, made if there is none and room for one. A process without a database has none.
    pub fn own(self, database: u32, known: &Known<'m, P>) -> Option<Queue<'m, P>> {
        if database == 0 {
            return None;
        }
        if let Some(known) = known.get()
            && known.database() == database
            && known.is_still()
        {
            return Some(known);
        }
        let found = self.platform.locked(Lock::Directory, Mode::Exclusive, || {
            self.of_database(database).or_else(|| {
                let is_free = |queue: &Queue<'m, P>| queue.database() == 0;
                self.all().filter(is_free).chain(self.all()).find_map(|queue| queue.begin(database))
            })
        });
        if found.is_some() {
            known.set(found);
        }
        found
    }

    /// Appends a record to the queue of a database; `false` if there is none or no room in it, which is
    /// counted.
    pub fn append(self, database: u32, known: &Known<'m, P>, record: &[u8]) -> bool {
        if database == 0 {
            return false;
        }
        // An idle queue goes to whoever needs one, at worst between the look-up and the lock.
        for _ in 0..3 {
            let Some(queue) = self.own(database, known) else { break };
            match queue.append(record) {
                Ok(()) => return true,
                Err(Refused::Full) => return false,
                Err(Refused::Moved) => {}
            }
        }
        self.directory.without_queue.fetch_add(1, Ordering::Relaxed);
        false
    }

    /// There are rows of a database to be sealed, or may be.
    pub fn want_worker(self, database: u32, known: &Known<'m, P>) {
        for _ in 0..3 {
            let Some(queue) = self.own(database, known) else { return };
            if queue.want_worker().is_ok() {
                return;
            }
        }
    }

    /// Events of databases for which there was no queue.
    pub fn without_queue(self) -> u64 {
        self.directory.without_queue.load(Ordering::Relaxed)
    }

    /// The memory is new, after a crash that sent so many events of these databases to the server log. Called
    /// before anybody else is there.
    pub fn begin(self, crashed: impl IntoIterator<Item = (u32, u64)>) {
        for (queue, (database, events)) in self.all().zip(crashed) {
            let slot = queue.slot();
            slot.database.store(database, Ordering::Release);
            slot.kept.crashed.store(events, Ordering::Release);
            // Rows may have been committed that are not sealed.
            slot.kept.wanted.store(true, Ordering::Release);
        }
    }

    /// This process is the launcher.
    pub fn enter_launcher(self, process: i32, latch: *mut P::Latch) {
        self.directory.launcher.store(latch, Ordering::Release);
        self.directory.launcher_process.store(process, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// The launcher is gone.
    pub fn leave_launcher(self) {
        self.directory.launcher.store(std::ptr::null_mut(), Ordering::Release);
        self.directory.launcher_process.store(0, Ordering::Release);
    }

    /// Its process id; 0 if it does not run.
    pub fn launcher(self) -> i32 {
        self.directory.launcher_process.load(Ordering::Acquire)
    }

    /// Wakes the launcher. It sees what was stored before, also if it is just coming and its latch is not
    /// seen here yet.
    pub fn wake_launcher(self) {
        fence(Ordering::SeqCst);
        self.wake(self.directory.launcher.load(Ordering::Acquire));
    }

    /// Asks the worker of a database to leave, and that none be started before a moment: the database is
    /// copied, dropped or renamed, and must have no sessions meanwhile. 0 ends it.
    pub fn yield_until(self, database: u32, moment: i64) {
        if let Some(queue) = self.of_database(database) {
            queue.still(Mode::Shared, || {
                queue.slot().kept.yield_until.store(moment, Ordering::Release);
            });
            self.wake(queue.slot().worker_latch.load(Ordering::Acquire));
            if moment == 0 {
                self.wake_launcher();
            }
        }
    }

    pub(crate) fn wake(self, latch: *mut P::Latch) {
        if !latch.is_null() {
            self.platform.wake(latch);
        }
    }

    pub(crate) fn slot(self, index: usize) -> &'m Slot<P::Latch> {
        &self.slots[index]
    }

    pub(crate) fn ring(self, index: usize) -> Ring<'m> {
        let bytes = self.rings.len() / self.slots.len();
        Ring(&self.rings[index * bytes..][..bytes])
    }
}

/// What a process remembers of its database's queue.
pub type Known<'m, P> = Cell<Option<Queue<'m, P>>>;
