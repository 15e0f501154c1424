//! The queues of events in shared memory: [`fieldcrypt_event_queue`] on Postgres's memory, locks and latches.

use std::cell::Cell;
use std::ops::Deref;

use fieldcrypt_event_queue::{Byte, Directory, Lock, Mode, Platform, Queues, Slot};
use pgrx::pg_sys;

use super::session;
use super::shared_memory::{self, Region};

const NAME: &std::ffi::CStr = c"pg_fieldcrypt audit";

/// The queue of a database.
#[derive(Clone, Copy)]
pub struct Queue(Inner);

type Inner = fieldcrypt_event_queue::Queue<'static, Postgres>;

thread_local! {
    static MEMORY: Cell<Option<Queues<'static, Postgres>>> = const { Cell::new(None) };
    static RING_BYTES: Cell<usize> = const { Cell::new(0) };
    static QUEUES: Cell<usize> = const { Cell::new(0) };
    static OWN: Cell<Option<Inner>> = const { Cell::new(None) };
    static CRASHED: Cell<Vec<(u32, u64)>> = const { Cell::new(Vec::new()) };
}

/// Asks for the memory.
pub fn init(queues: usize, ring_bytes: usize) {
    // Slots stay aligned, and rings apart.
    let ring_bytes = ring_bytes.next_multiple_of(64);
    QUEUES.set(queues);
    RING_BYTES.set(ring_bytes);
    let bytes = size_of::<Directory<pg_sys::Latch>>()
        + queues * (size_of::<Slot<pg_sys::Latch>>() + ring_bytes);
    shared_memory::register(NAME, bytes, 1 + queues);
    shared_memory::when_made(begin);
}

fn memory() -> Option<Queues<'static, Postgres>> {
    if let Some(known) = MEMORY.get() {
        return Some(known);
    }
    let region = shared_memory::region(NAME)?;
    let queues = in_region(region, QUEUES.get(), RING_BYTES.get());
    // The postmaster makes it anew after a crash, so only its children may remember where it is.
    // SAFETY: a variable of the process.
    if unsafe { pg_sys::IsUnderPostmaster } {
        MEMORY.set(Some(queues));
    }
    Some(queues)
}

/// The directory, the slots, the rings: one after the other.
fn in_region(region: Region, queues: usize, ring_bytes: usize) -> Queues<'static, Postgres> {
    type Header = Directory<pg_sys::Latch>;
    type Body = Slot<pg_sys::Latch>;
    assert!(
        region.memory.cast::<Header>().is_aligned(),
        "shared memory comes in lines of the cache"
    );
    const { assert!(align_of::<Body>() <= align_of::<Header>()) };
    // SAFETY: `init` asked for so many bytes. The first is aligned, and sizes are multiples of alignments, so
    // what follows is aligned, too. All three are atomics alone, of which zero bytes are a valid value, and
    // nothing else ever touches the memory. It lives as long as the process; the postmaster, which makes
    // it anew after a crash, asks for it each time.
    unsafe {
        let header = region.memory.cast::<Header>();
        let slots = header.add(1).cast::<Body>();
        let rings = slots.add(queues).cast::<Byte>();
        Queues::new(
            Postgres { region },
            &*header,
            std::slice::from_raw_parts(slots, queues),
            std::slice::from_raw_parts(rings, queues * ring_bytes),
        )
    }
}

/// The server's locks and latches, as the queues use them.
#[derive(Clone, Copy)]
pub struct Postgres {
    region: Region,
}

impl Platform for Postgres {
    type Latch = pg_sys::Latch;

    fn locked<R>(&self, lock: Lock, mode: Mode, work: impl FnOnce() -> R) -> R {
        let lock = match lock {
            Lock::Directory => 0,
            Lock::Queue(index) => 1 + index,
        };
        self.region.locked(lock, mode == Mode::Exclusive, work)
    }

    #[expect(
        clippy::not_unsafe_ptr_arg_deref,
        reason = "the queue gives only what a process stored"
    )]
    fn wake(&self, latch: *mut pg_sys::Latch) {
        // SAFETY: latches of processes lie in shared memory for the life of the server; setting one whose
        // process is gone wakes at most whoever has its place now. It raises nothing.
        unsafe { unguarded::SetLatch(latch) };
    }
}

/// This process: its id, and what it sleeps on.
fn process() -> (i32, *mut pg_sys::Latch) {
    // SAFETY: variables of the process; its latch lies in shared memory.
    unsafe { (pg_sys::MyProcPid, pg_sys::MyLatch) }
}

/// Whether there are queues at all: the library was preloaded.
pub fn exists() -> bool {
    memory().is_some()
}

/// All queues.
pub fn all() -> impl Iterator<Item = Queue> {
    memory().into_iter().flat_map(Queues::all).map(Queue)
}

/// The queue of a database, if it has one.
pub fn of_database(database: u32) -> Option<Queue> {
    memory()?.of_database(database).map(Queue)
}

/// The queue of this session's database, made if there is none and room for one.
pub fn own() -> Option<Queue> {
    let queues = memory()?;
    OWN.with(|known| queues.own(session::database(), known)).map(Queue)
}

/// Appends a record to the queue of this session's database; `false` if there is none or no room in it,
/// which is counted.
pub fn append(record: &[u8]) -> bool {
    memory()
        .is_some_and(|queues| OWN.with(|known| queues.append(session::database(), known, record)))
}

/// The postmaster keeps, over the loss of the memory, how many events of which database a crash sent to the
/// server log.
pub fn remember_crash(events: Vec<(u32, u64)>) {
    CRASHED.set(events);
}

/// The memory is new. After a crash it begins with what was remembered.
pub fn begin() {
    if let Some(queues) = memory() {
        queues.begin(CRASHED.take());
    }
}

/// Events of databases for which there was no queue.
pub fn without_queue() -> u64 {
    memory().map_or(0, Queues::without_queue)
}

impl Queue {
    /// The queue with this number.
    pub fn of_index(index: usize) -> Option<Self> {
        memory()?.of_index(index).map(Self)
    }

    /// There are rows to be sealed, or may be. If another database has taken the queue, this one's takes another.
    pub fn want_worker(self) {
        if let Some(queues) = memory() {
            OWN.with(|known| queues.want_worker(self.database(), known));
        }
    }

    /// A worker is to look at its database. If another one has taken the queue since, there is nobody to tell.
    pub fn look_now(self) {
        if self.database() != 0 {
            let _ = self.0.want_worker();
        }
    }

    /// This process is the worker; `false` if there is one, or another database has the queue.
    pub fn enter_worker(self) -> bool {
        let (process, latch) = process();
        self.0.enter_worker(process, latch)
    }
}

/// All else that a queue does needs nothing of the process.
impl Deref for Queue {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// This process is the launcher.
pub fn enter_launcher() {
    if let Some(queues) = memory() {
        let (process, latch) = process();
        queues.enter_launcher(process, latch);
    }
}

/// The launcher is gone.
pub fn leave_launcher() {
    if let Some(queues) = memory() {
        queues.leave_launcher();
    }
}

/// Its process id; 0 if it does not run.
pub fn launcher() -> i32 {
    memory().map_or(0, Queues::launcher)
}

/// Asks the worker of a database to leave, and that none be started before a moment in Postgres's time: the
/// database is copied, dropped or renamed, and must have no sessions meanwhile. 0 ends it.
pub fn yield_until(database: u32, moment: i64) {
    if let Some(queues) = memory() {
        queues.yield_until(database, moment);
    }
}

mod unguarded {
    use pgrx::pg_sys;
    unsafe extern "C-unwind" {
        pub fn SetLatch(latch: *mut pg_sys::Latch);
    }
}
