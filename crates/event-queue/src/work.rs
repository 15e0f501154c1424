//! Whether a worker is needed, and who it is.

use crate::platform::{Mode, Platform};
use crate::queue::{Moved, Queue};
use crate::sync::{Ordering, fence};

impl<P: Platform> Queue<'_, P> {
    /// Whether a worker is needed: events, gaps, or rows to be sealed.
    pub fn has_work(self) -> bool {
        self.database != 0
            && (self.has_events()
                || self.gaps() != (0, 0)
                || self.slot().kept.wanted.load(Ordering::Acquire))
    }

    /// There are rows to be sealed, or may be.
    pub fn want_worker(self) -> Result<(), Moved> {
        let wanted = &self.slot().kept.wanted;
        let was_wanted = self.still(Mode::Shared, || wanted.swap(true, Ordering::AcqRel));
        if !was_wanted.ok_or(Moved)? {
            self.wake();
        }
        Ok(())
    }

    /// The worker takes notice of what `want_worker` and `look_again` said.
    pub fn take_wanted(self) -> bool {
        // Swaps: whose word is taken away here is seen by the look that follows, with all that came before it.
        let kept = &self.slot().kept;
        kept.look_again_at.swap(0, Ordering::AcqRel);
        kept.wanted.swap(false, Ordering::AcqRel)
    }

    /// A worker is wanted once more at this time, whatever happens until then.
    pub fn look_again(self, at: i64) {
        self.still(Mode::Shared, || self.slot().kept.look_again_at.swap(at, Ordering::AcqRel));
    }

    /// Whether that time has come.
    pub fn is_to_be_looked_at(self, now: i64) -> bool {
        let at = self.slot().kept.look_again_at.load(Ordering::Acquire);
        at != 0 && now >= at
    }

    /// Since when nothing has come from a restore, if that is so now; otherwise what was seen is forgotten.
    pub fn quiet_since(self, now: Option<i64>) -> Option<i64> {
        let since = &self.slot().kept.quiet_since;
        self.still(Mode::Shared, || {
            let Some(now) = now else {
                since.store(0, Ordering::Relaxed);
                return None;
            };
            match since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => Some(now),
                Err(since) => Some(since),
            }
        })?
    }

    /// The database is dropped.
    pub fn database_dropped(self) {
        self.still(Mode::Shared, || self.slot().kept.dropped.store(true, Ordering::Release));
        self.queues.wake_launcher();
    }

    /// Whether it was.
    pub fn is_dropped(self) -> bool {
        self.slot().kept.dropped.load(Ordering::Acquire)
    }

    /// Its worker's process id, -1 while one is being started, 0 for none.
    pub fn worker(self) -> i32 {
        self.slot().worker.load(Ordering::Acquire)
    }

    /// A worker is being started; `false` if there is one, or another database has the queue.
    pub fn expect_worker(self) -> bool {
        self.still(Mode::Shared, || self.change_worker(0, -1)).unwrap_or(false)
    }

    /// This process is the worker; `false` if there is one, or another database has the queue. A launcher that was started anew knows nothing
    /// of the worker that the last one asked for, and asks for another.
    pub fn enter_worker(self, process: i32, latch: *mut P::Latch) -> bool {
        let is_it = self
            .still(Mode::Shared, || {
                self.change_worker(-1, process) || self.change_worker(0, process)
            })
            .unwrap_or(false);
        if is_it {
            self.slot().worker_latch.store(latch, Ordering::Release);
            fence(Ordering::SeqCst);
        }
        is_it
    }

    /// The worker that was expected did not come. The next one waits a while.
    pub fn miss_worker(self, now: i64) {
        if self.change_worker(-1, 0) {
            self.postpone(now);
        }
    }

    /// The worker is gone. After a failure the next one waits a while.
    pub fn leave_worker(self, has_failed: bool, now: i64) {
        let slot = self.slot();
        slot.worker_latch.store(std::ptr::null_mut(), Ordering::Release);
        if has_failed {
            // What it was to seal is left.
            slot.kept.wanted.store(true, Ordering::Release);
            self.postpone(now);
        } else {
            slot.kept.not_before.store(0, Ordering::Relaxed);
        }
        slot.worker.store(0, Ordering::Release);
        self.queues.wake_launcher();
    }

    /// Until when its workers are to stay away.
    pub fn yielding_until(self) -> i64 {
        self.slot().kept.yield_until.load(Ordering::Acquire)
    }

    /// When the next worker may be started.
    pub fn not_before(self) -> i64 {
        self.slot().kept.not_before.load(Ordering::Relaxed)
    }

    /// A checkpoint was stored.
    pub fn checkpoint_stored(self, size: u64, now: i64) {
        let kept = &self.slot().kept;
        self.still(Mode::Shared, || {
            kept.checkpoint_size.store(size, Ordering::Relaxed);
            kept.sealed_until.fetch_max(size, Ordering::Relaxed);
            kept.checkpoint_at.store(now, Ordering::Relaxed);
        });
    }

    /// How many rows a checkpoint stated since the server started, at the most.
    pub fn sealed_until(self) -> u64 {
        let sealed_until = &self.slot().kept.sealed_until;
        self.still(Mode::Shared, || sealed_until.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// The log begins anew, and may be shorter: the extension was dropped, or somebody said why.
    pub fn forget_sealed(self) {
        let sealed_until = &self.slot().kept.sealed_until;
        self.still(Mode::Shared, || sealed_until.store(0, Ordering::Relaxed));
    }

    /// Whether a state is another one than that of which was told last. From now on it is that one; 0 is none.
    pub fn is_news(self, state: u64) -> bool {
        let told = &self.slot().kept.told;
        self.still(Mode::Shared, || told.swap(state, Ordering::Relaxed) != state).unwrap_or(true)
    }

    fn change_worker(self, from: i32, to: i32) -> bool {
        let worker = &self.slot().worker;
        worker.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn postpone(self, now: i64) {
        let kept = &self.slot().kept;
        let failures = kept.failures.fetch_add(1, Ordering::Relaxed).min(5);
        kept.not_before.store(now + (1_000_000 << failures), Ordering::Relaxed);
    }
}
