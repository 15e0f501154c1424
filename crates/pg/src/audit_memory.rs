//! The queues of events in shared memory: one ring of bytes for each database that has any.
//!
//! Sessions append to the ring of their database; the worker of that database takes from it. A record is
//! visible only when it is whole: its bytes come before the position that tells of them. So a process that
//! is killed while it writes leaves nothing half-written, and the postmaster can read what is left.

use std::cell::{Cell, UnsafeCell};
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, Ordering,
};

use pgrx::pg_sys;

use super::session;
use super::shared_memory::{self, Region};

const NAME: &std::ffi::CStr = c"pg_fieldcrypt audit";
/// Lock 0 is of the directory: which ring is whose. Lock 1 + n is of ring n.
const DIRECTORY: usize = 0;
/// Before each record: its length.
const RECORD_HEADER: usize = 4;
/// Bytes of a request to the signer, and of its answer.
const MESSAGE: usize = 16 * 1024;

#[repr(C)]
struct Header {
    launcher: AtomicPtr<pg_sys::Latch>,
    launcher_process: AtomicI32,
    without_ring: AtomicU64,
}

#[repr(C)]
struct Slot {
    database: AtomicU32,
    worker: AtomicI32,
    worker_latch: AtomicPtr<pg_sys::Latch>,
    /// Positions count bytes since the ring began, and never go back.
    head: AtomicU64,
    tail: AtomicU64,
    committing: AtomicU64,
    queued: AtomicU64,
    overflowed: AtomicU64,
    overflowed_in_all: AtomicU64,
    crashed: AtomicU64,
    wanted: AtomicBool,
    dropped: AtomicBool,
    failures: AtomicU32,
    not_before: AtomicI64,
    yield_until: AtomicI64,
    look_again_at: AtomicI64,
    quiet_since: AtomicI64,
    written_at: AtomicI64,
    checkpoint_at: AtomicI64,
    checkpoint_size: AtomicU64,
    /// The most that any checkpoint stated, also after smaller ones.
    sealed_until: AtomicU64,
    problem_length: AtomicU32,
    asked: AtomicU64,
    answered: AtomicU64,
    message_length: AtomicU32,
    /// Both under the lock of the queue.
    problem: UnsafeCell<[u8; 256]>,
    message: UnsafeCell<[u8; MESSAGE]>,
}

/// What `audit_status` shows of a queue.
#[derive(Debug, Default, Clone)]
pub struct Status {
    /// Bytes of the ring.
    pub bytes: u64,
    /// Bytes in use.
    pub used: u64,
    /// Events that were queued since the ring began.
    pub queued: u64,
    /// Events that found no room.
    pub overflowed: u64,
    /// Process id of the worker; 0 if none runs.
    pub worker: i32,
    /// When events were last written, in Postgres's time; 0 for never.
    pub written_at: i64,
    /// When the last checkpoint was stored; 0 for never since the server started.
    pub checkpoint_at: i64,
    /// Its size.
    pub checkpoint_size: u64,
    /// Why the last attempt failed.
    pub problem: Option<String>,
}

/// The queue of a database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Queue {
    index: usize,
}

thread_local! {
    static MEMORY: Cell<Option<Region>> = const { Cell::new(None) };
    static RING_BYTES: Cell<usize> = const { Cell::new(0) };
    static QUEUES: Cell<usize> = const { Cell::new(0) };
    static OWN: Cell<Option<Queue>> = const { Cell::new(None) };
    static CRASHED: Cell<Vec<(u32, u64)>> = const { Cell::new(Vec::new()) };
}

/// Asks for the memory.
pub fn init(queues: usize, ring_bytes: usize) {
    // Positions are taken modulo this, and slots stay aligned.
    let ring_bytes = ring_bytes.next_multiple_of(64);
    QUEUES.set(queues);
    RING_BYTES.set(ring_bytes);
    let bytes = size_of::<Header>().next_multiple_of(64) + queues * stride();
    shared_memory::register(NAME, bytes, 1 + queues);
    shared_memory::when_made(begin);
}

fn stride() -> usize {
    size_of::<Slot>().next_multiple_of(64) + RING_BYTES.get()
}

fn memory() -> Option<Region> {
    if let Some(known) = MEMORY.get() {
        return Some(known);
    }
    let region = shared_memory::region(NAME)?;
    // The postmaster makes it anew after a crash, so only its children may remember where it is.
    // SAFETY: a variable of the process.
    if unsafe { pg_sys::IsUnderPostmaster } {
        MEMORY.set(Some(region));
    }
    Some(region)
}

/// Whether there are queues at all: the library was preloaded.
pub fn exists() -> bool {
    memory().is_some()
}

fn header() -> Option<&'static Header> {
    // SAFETY: the region begins with it, zeroed memory is a valid one, and it lives as long as the process.
    memory().map(|region| unsafe { &*region.memory.cast::<Header>() })
}

/// All queues.
pub fn all() -> impl Iterator<Item = Queue> {
    let count = if exists() { QUEUES.get() } else { 0 };
    (0..count).map(|index| Queue { index })
}

/// The queue of a database, if it has one.
pub fn of_database(database: u32) -> Option<Queue> {
    all().find(|queue| queue.database() == database)
}

/// The queue of this session's database, made if there is none and room for one.
pub fn own() -> Option<Queue> {
    let database = session::database();
    if database == 0 {
        return None;
    }
    if let Some(known) = OWN.get()
        && known.database() == database
    {
        return Some(known);
    }
    let region = memory()?;
    let found = region.locked(DIRECTORY, true, || {
        let known = all().find(|queue| queue.database() == database);
        known.or_else(|| {
            let is_free = |queue: &Queue| queue.database() == 0;
            all().filter(is_free).chain(all()).find(|queue| queue.begin(database))
        })
    });
    match found {
        Some(queue) => OWN.set(Some(queue)),
        None => {
            if let Some(header) = header() {
                header.without_ring.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    found
}

/// The postmaster keeps, over the loss of the memory, how many events of which database a crash sent to the
/// server log.
pub fn remember_crash(events: Vec<(u32, u64)>) {
    CRASHED.set(events);
}

/// The memory is new. After a crash it begins with what was remembered.
pub fn begin() {
    for (queue, (database, events)) in all().zip(CRASHED.take()) {
        let slot = queue.slot();
        slot.database.store(database, Ordering::Release);
        slot.crashed.store(events, Ordering::Release);
        // Rows may have been committed that are not sealed.
        slot.wanted.store(true, Ordering::Release);
    }
}

/// Events of databases for which there was no queue.
pub fn without_queue() -> u64 {
    header().map_or(0, |header| header.without_ring.load(Ordering::Relaxed))
}

/// Why a queue did not take an event.
enum Refused {
    /// There is no room.
    Full,
    /// It is another database's by now.
    Moved,
}

/// Appends a record to the queue of this session's database; `false` if there is none or no room in it,
/// which is counted.
pub fn append(record: &[u8]) -> bool {
    // An idle queue goes to whoever needs one, at worst between the look-up and the lock.
    for _ in 0..3 {
        let Some(queue) = own() else { return false };
        match queue.append(session::database(), record) {
            Ok(()) => return true,
            Err(Refused::Full) => return false,
            Err(Refused::Moved) => {}
        }
    }
    if let Some(header) = header() {
        header.without_ring.fetch_add(1, Ordering::Relaxed);
    }
    false
}

impl Queue {
    /// The queue with this number.
    pub fn of_index(index: usize) -> Option<Self> {
        all().find(|queue| queue.index == index)
    }

    /// Its number.
    pub fn index(self) -> usize {
        self.index
    }

    fn slot(self) -> &'static Slot {
        let start = size_of::<Header>().next_multiple_of(64) + self.index * stride();
        let Some(region) = memory() else { unreachable!("queues are in shared memory") };
        // SAFETY: the index is below the number of queues. Zeroed memory is a valid slot; what is not atomic
        // in it is touched under its lock only.
        unsafe { &*region.memory.add(start).cast::<Slot>() }
    }

    fn ring(self) -> *mut u8 {
        // SAFETY: the ring comes after the slot, inside the region.
        unsafe {
            std::ptr::from_ref(self.slot())
                .cast::<u8>()
                .cast_mut()
                .add(size_of::<Slot>().next_multiple_of(64))
        }
    }

    fn locked<R>(self, exclusively: bool, work: impl FnOnce() -> R) -> R {
        match memory() {
            Some(region) => region.locked(1 + self.index, exclusively, work),
            None => unreachable!("queues are in shared memory"),
        }
    }

    /// The database; 0 if it is nobody's.
    pub fn database(self) -> u32 {
        self.slot().database.load(Ordering::Acquire)
    }

    fn is_idle(&self) -> bool {
        let slot = self.slot();
        slot.worker.load(Ordering::Acquire) == 0
            && !self.has_work()
            && slot.head.load(Ordering::Acquire) == slot.tail.load(Ordering::Acquire)
    }

    /// Takes the queue for a database, if it is nobody's or idle. The caller holds the lock of the
    /// directory; a session of the database that had it may append until it is locked here.
    fn begin(self, database: u32) -> bool {
        self.locked(true, || {
            let slot = self.slot();
            if self.database() != 0 && !self.is_idle() {
                return false;
            }
            slot.tail.store(slot.head.load(Ordering::Acquire), Ordering::Release);
            for number in [&slot.queued, &slot.overflowed, &slot.overflowed_in_all, &slot.crashed] {
                number.store(0, Ordering::Relaxed);
            }
            slot.dropped.store(false, Ordering::Relaxed);
            slot.failures.store(0, Ordering::Relaxed);
            slot.not_before.store(0, Ordering::Relaxed);
            slot.yield_until.store(0, Ordering::Relaxed);
            slot.look_again_at.store(0, Ordering::Relaxed);
            slot.quiet_since.store(0, Ordering::Relaxed);
            slot.written_at.store(0, Ordering::Relaxed);
            slot.checkpoint_at.store(0, Ordering::Relaxed);
            slot.checkpoint_size.store(0, Ordering::Relaxed);
            slot.sealed_until.store(0, Ordering::Relaxed);
            slot.wanted.store(false, Ordering::Relaxed);
            slot.problem_length.store(0, Ordering::Relaxed);
            // A question that its worker did not live to read the answer of was the other database's.
            slot.answered.store(slot.asked.load(Ordering::Acquire), Ordering::Release);
            slot.database.store(database, Ordering::Release);
            true
        })
    }

    /// Gives the queue of a database that is gone to whoever needs one.
    pub fn end(self) {
        if let Some(region) = memory() {
            region.locked(DIRECTORY, true, || self.slot().database.store(0, Ordering::Release));
        }
    }

    /// Appends a record. Wakes whoever writes it down.
    fn append(self, database: u32, record: &[u8]) -> Result<(), Refused> {
        let slot = self.slot();
        let room = RING_BYTES.get() as u64;
        let needed = (RECORD_HEADER + record.len()) as u64;
        let before = self.locked(true, || {
            let (head, tail) =
                (slot.head.load(Ordering::Relaxed), slot.tail.load(Ordering::Acquire));
            if slot.database.load(Ordering::Relaxed) != database {
                return Err(Refused::Moved);
            }
            if head - tail + needed > room {
                slot.overflowed.fetch_add(1, Ordering::Relaxed);
                slot.overflowed_in_all.fetch_add(1, Ordering::Relaxed);
                return Err(Refused::Full);
            }
            self.copy_in(head, &(record.len() as u32).to_be_bytes());
            self.copy_in(head + RECORD_HEADER as u64, record);
            slot.head.store(head + needed, Ordering::Release);
            slot.queued.fetch_add(1, Ordering::Relaxed);
            Ok(head - tail)
        });
        let half = room / 2;
        match before {
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
        let head = self.slot().head.load(Ordering::Acquire);
        let mut position = from;
        let mut records = Vec::new();
        if head.wrapping_sub(from) > RING_BYTES.get() as u64 {
            // Memory that a crashing process damaged.
            return (records, head);
        }
        while position < head && position - from < bytes {
            let mut length = [0; RECORD_HEADER];
            if head - position < RECORD_HEADER as u64 {
                return (records, head);
            }
            self.copy_out(position, &mut length);
            let length = u64::from(u32::from_be_bytes(length));
            let end = position + RECORD_HEADER as u64 + length;
            if end > head {
                return (records, head);
            }
            let mut record = vec![0; length as usize];
            self.copy_out(position + RECORD_HEADER as u64, &mut record);
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
        slot.tail.store(position, Ordering::Release);
        slot.overflowed.fetch_sub(overflowed, Ordering::Relaxed);
        slot.crashed.fetch_sub(crashed, Ordering::Relaxed);
        slot.written_at.store(now, Ordering::Relaxed);
        slot.failures.store(0, Ordering::Relaxed);
    }

    /// Events that found no room, and events that a crash sent to the server log, both not told yet.
    pub fn gaps(self) -> (u64, u64) {
        let slot = self.slot();
        (slot.overflowed.load(Ordering::Relaxed), slot.crashed.load(Ordering::Relaxed))
    }

    /// Whether a worker is needed: events, gaps, or rows to be sealed.
    pub fn has_work(self) -> bool {
        let slot = self.slot();
        let (overflowed, crashed) = self.gaps();
        slot.database.load(Ordering::Acquire) != 0
            && (slot.head.load(Ordering::Acquire) != slot.tail.load(Ordering::Acquire)
                || overflowed + crashed > 0
                || slot.wanted.load(Ordering::Acquire))
    }

    /// Whether events wait to be written.
    pub fn has_events(self) -> bool {
        self.head() != self.tail()
    }

    /// There are rows to be sealed, or may be.
    pub fn want_worker(self) {
        if !self.slot().wanted.swap(true, Ordering::AcqRel) {
            self.wake();
        }
    }

    /// The worker takes notice of what `want_worker` and `look_again` said.
    pub fn take_wanted(self) -> bool {
        self.slot().look_again_at.store(0, Ordering::Release);
        self.slot().wanted.swap(false, Ordering::AcqRel)
    }

    /// Since when nothing has come from a restore, in Postgres's time, if that is so now; otherwise what was
    /// seen is forgotten.
    pub fn quiet_since(self, now: Option<i64>) -> Option<i64> {
        let since = &self.slot().quiet_since;
        let Some(now) = now else {
            since.store(0, Ordering::Relaxed);
            return None;
        };
        match since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => Some(now),
            Err(since) => Some(since),
        }
    }

    /// A worker is wanted once more at this time, whatever happens until then.
    pub fn look_again(self, at: i64) {
        self.slot().look_again_at.store(at, Ordering::Release);
    }

    /// Whether that time has come.
    pub fn is_to_be_looked_at(self, now: i64) -> bool {
        let at = self.slot().look_again_at.load(Ordering::Acquire);
        at != 0 && now >= at
    }

    /// The database is dropped.
    pub fn database_dropped(self) {
        self.slot().dropped.store(true, Ordering::Release);
        wake_launcher();
    }

    /// Whether it was.
    pub fn is_dropped(self) -> bool {
        self.slot().dropped.load(Ordering::Acquire)
    }

    /// Its worker's process id, -1 while one is being started, 0 for none.
    pub fn worker(self) -> i32 {
        self.slot().worker.load(Ordering::Acquire)
    }

    /// A worker is being started; `false` if there is one.
    pub fn expect_worker(self) -> bool {
        self.change_worker(0, -1)
    }

    /// This process is the worker; `false` if there is one. A launcher that was started anew knows nothing
    /// of the worker that the last one asked for, and asks for another.
    pub fn enter_worker(self) -> bool {
        // SAFETY: variables of the process; its latch lies in shared memory.
        let (process, latch) = unsafe { (pg_sys::MyProcPid, pg_sys::MyLatch) };
        let is_it = self.change_worker(-1, process) || self.change_worker(0, process);
        if is_it {
            self.slot().worker_latch.store(latch, Ordering::Release);
        }
        is_it
    }

    /// The worker that was expected did not come. The next one waits a while.
    pub fn miss_worker(self, now: i64) {
        if self.change_worker(-1, 0) {
            self.postpone(now);
        }
    }

    fn change_worker(self, from: i32, to: i32) -> bool {
        let worker = &self.slot().worker;
        worker.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn postpone(self, now: i64) {
        let slot = self.slot();
        let failures = slot.failures.fetch_add(1, Ordering::Relaxed).min(5);
        slot.not_before.store(now + (1_000_000 << failures), Ordering::Relaxed);
    }

    /// The worker is gone. After a failure the next one waits a while.
    pub fn leave_worker(self, has_failed: bool, now: i64) {
        let slot = self.slot();
        slot.worker_latch.store(std::ptr::null_mut(), Ordering::Release);
        if has_failed {
            // What it was to seal is left.
            slot.wanted.store(true, Ordering::Release);
            self.postpone(now);
        } else {
            slot.not_before.store(0, Ordering::Relaxed);
        }
        slot.worker.store(0, Ordering::Release);
        wake_launcher();
    }

    /// Until when its workers are to stay away.
    pub fn yielding_until(self) -> i64 {
        self.slot().yield_until.load(Ordering::Acquire)
    }

    /// When the next worker may be started, in Postgres's time.
    pub fn not_before(self) -> i64 {
        self.slot().not_before.load(Ordering::Relaxed)
    }

    /// A checkpoint was stored.
    pub fn checkpoint_stored(self, size: u64, now: i64) {
        let slot = self.slot();
        slot.checkpoint_size.store(size, Ordering::Relaxed);
        slot.sealed_until.fetch_max(size, Ordering::Relaxed);
        slot.checkpoint_at.store(now, Ordering::Relaxed);
    }

    /// How many rows a checkpoint stated since the server started, at the most.
    pub fn sealed_until(self) -> u64 {
        self.slot().sealed_until.load(Ordering::Relaxed)
    }

    /// The log begins anew, and may be shorter: the extension was dropped, or somebody said why.
    pub fn forget_sealed(self) {
        self.slot().sealed_until.store(0, Ordering::Relaxed);
    }

    /// Why something failed; `None` when it works again.
    pub fn set_problem(self, problem: Option<&str>) {
        self.locked(true, || {
            let slot = self.slot();
            let text = problem.unwrap_or_default();
            // SAFETY: under the lock nobody else has a reference to it.
            let problem = unsafe { &mut *slot.problem.get() };
            let length = text.floor_char_boundary(problem.len());
            problem[..length].copy_from_slice(&text.as_bytes()[..length]);
            slot.problem_length.store(length as u32, Ordering::Relaxed);
        });
    }

    /// For people.
    pub fn status(self) -> Status {
        let slot = self.slot();
        let problem = self.locked(false, || {
            let length = slot.problem_length.load(Ordering::Relaxed) as usize;
            // SAFETY: under the lock nobody writes to it.
            let problem = unsafe { &*slot.problem.get() };
            String::from_utf8_lossy(&problem[..length.min(problem.len())]).into_owned()
        });
        let (head, tail) = (slot.head.load(Ordering::Acquire), slot.tail.load(Ordering::Acquire));
        Status {
            bytes: RING_BYTES.get() as u64,
            used: head.saturating_sub(tail),
            queued: slot.queued.load(Ordering::Relaxed),
            overflowed: slot.overflowed_in_all.load(Ordering::Relaxed),
            worker: self.worker().max(0),
            written_at: slot.written_at.load(Ordering::Relaxed),
            checkpoint_at: slot.checkpoint_at.load(Ordering::Relaxed),
            checkpoint_size: slot.checkpoint_size.load(Ordering::Relaxed),
            problem: (!problem.is_empty()).then_some(problem),
        }
    }

    /// The worker asks the launcher; gives the number of the question.
    pub fn ask(self, question: &[u8]) -> Option<u64> {
        let slot = self.slot();
        let serial = self.locked(true, || {
            self.put_message(question)?;
            Some(slot.asked.fetch_add(1, Ordering::AcqRel) + 1)
        });
        wake_launcher();
        serial
    }

    /// The question that has no answer yet.
    pub fn question(self) -> Option<(u64, Vec<u8>)> {
        let slot = self.slot();
        let (asked, answered) =
            (slot.asked.load(Ordering::Acquire), slot.answered.load(Ordering::Acquire));
        (asked != answered).then(|| (asked, self.locked(false, || self.message())))
    }

    /// The launcher's answer to a question, for the worker to read.
    pub fn answer(self, serial: u64, answer: &[u8]) {
        let slot = self.slot();
        self.locked(true, || {
            if slot.asked.load(Ordering::Acquire) == serial {
                let _ = self.put_message(answer);
                slot.answered.store(serial, Ordering::Release);
            }
        });
        self.wake();
    }

    /// What the launcher answered to this question, if it has.
    pub fn answer_to(self, serial: u64) -> Option<Vec<u8>> {
        let slot = self.slot();
        (slot.answered.load(Ordering::Acquire) == serial)
            .then(|| self.locked(false, || self.message()))
    }

    fn put_message(self, message: &[u8]) -> Option<()> {
        if message.len() > MESSAGE {
            return None;
        }
        // SAFETY: the caller has the lock, under which nobody else has a reference to it.
        let target = unsafe { &mut *self.slot().message.get() };
        target[..message.len()].copy_from_slice(message);
        self.slot().message_length.store(message.len() as u32, Ordering::Relaxed);
        Some(())
    }

    fn message(self) -> Vec<u8> {
        let slot = self.slot();
        let length = slot.message_length.load(Ordering::Relaxed) as usize;
        // SAFETY: the caller has the lock, under which nobody writes to it.
        let message = unsafe { &*slot.message.get() };
        message[..length.min(MESSAGE)].to_vec()
    }

    fn wake(self) {
        let latch = self.slot().worker_latch.load(Ordering::Acquire);
        if latch.is_null() { wake_launcher() } else { set_latch(latch) }
    }

    fn copy_in(self, position: u64, bytes: &[u8]) {
        let (start, first) = self.split(position, bytes.len());
        // SAFETY: both parts lie inside the ring, and under its lock nobody else writes.
        unsafe {
            self.ring().add(start).copy_from_nonoverlapping(bytes.as_ptr(), first);
            self.ring().copy_from_nonoverlapping(bytes.as_ptr().add(first), bytes.len() - first);
        }
    }

    fn copy_out(self, position: u64, bytes: &mut [u8]) {
        let (start, first) = self.split(position, bytes.len());
        // SAFETY: both parts lie inside the ring; what is between tail and head does not change.
        unsafe {
            self.ring().add(start).copy_to_nonoverlapping(bytes.as_mut_ptr(), first);
            self.ring().copy_to_nonoverlapping(bytes.as_mut_ptr().add(first), bytes.len() - first);
        }
    }

    fn split(self, position: u64, length: usize) -> (usize, usize) {
        let ring = RING_BYTES.get();
        assert!(length <= ring, "a record is smaller than the ring");
        let start = (position % ring as u64) as usize;
        (start, length.min(ring - start))
    }
}

/// This process is the launcher.
pub fn enter_launcher() {
    if let Some(header) = header() {
        // SAFETY: variables of the process; its latch lies in shared memory.
        unsafe {
            header.launcher.store(pg_sys::MyLatch, Ordering::Release);
            header.launcher_process.store(pg_sys::MyProcPid, Ordering::Release);
        }
    }
}

/// The launcher is gone.
pub fn leave_launcher() {
    if let Some(header) = header() {
        header.launcher.store(std::ptr::null_mut(), Ordering::Release);
        header.launcher_process.store(0, Ordering::Release);
    }
}

/// Its process id; 0 if it does not run.
pub fn launcher() -> i32 {
    header().map_or(0, |header| header.launcher_process.load(Ordering::Acquire))
}

/// Wakes the launcher.
pub fn wake_launcher() {
    if let Some(header) = header() {
        set_latch(header.launcher.load(Ordering::Acquire));
    }
}

/// Asks the worker of a database to leave, and that none be started before a moment in Postgres's time: the
/// database is copied, dropped or renamed, and must have no sessions meanwhile. 0 ends it.
pub fn yield_until(database: u32, moment: i64) {
    if let Some(queue) = of_database(database) {
        queue.slot().yield_until.store(moment, Ordering::Release);
        set_latch(queue.slot().worker_latch.load(Ordering::Acquire));
        if moment == 0 {
            wake_launcher();
        }
    }
}

fn set_latch(latch: *mut pg_sys::Latch) {
    if !latch.is_null() {
        // SAFETY: latches of processes lie in shared memory for the life of the server; setting one whose
        // process is gone wakes at most whoever has its place now. It raises nothing.
        unsafe { unguarded::SetLatch(latch) };
    }
}

mod unguarded {
    use pgrx::pg_sys;
    unsafe extern "C-unwind" {
        pub fn SetLatch(latch: *mut pg_sys::Latch);
    }
}
