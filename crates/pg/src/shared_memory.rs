//! Memory that all processes of the server share, if the library is preloaded.
//!
//! Each user of it registers a region from `_PG_init`; the postmaster makes them when it starts, and anew
//! after a crash of one of its processes. A region begins as zero bytes.

use std::cell::RefCell;
use std::ffi::{CStr, c_int};
use std::sync::OnceLock;

use pgrx::pg_sys;

use super::version;

/// A region of shared memory, and the locks that its user asked for.
#[derive(Clone, Copy)]
pub struct Region {
    /// Its first byte.
    pub memory: *mut u8,
    /// Its locks: as many as were registered.
    locks: *mut pg_sys::LWLockPadded,
    lock_count: usize,
}

struct Registered {
    name: &'static CStr,
    bytes: usize,
    locks: usize,
    made: Option<Region>,
}

thread_local! {
    static REGIONS: RefCell<Vec<Registered>> = const { RefCell::new(Vec::new()) };
}

static WHEN_MADE: OnceLock<fn()> = OnceLock::new();
static BEFORE_LOSS: OnceLock<fn()> = OnceLock::new();

/// Registers what the postmaster does when the memory was made, anew after a crash too.
pub fn when_made(work: fn()) {
    WHEN_MADE.get_or_init(|| work);
}

/// Registers what the postmaster does before the memory goes.
pub fn before_loss(work: fn()) {
    BEFORE_LOSS.get_or_init(|| work);
}

/// Whether the postmaster is loading the library: the only moment at which memory can be asked for.
pub fn is_preloading() -> bool {
    // SAFETY: a variable of the postmaster.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Asks for a region. Does nothing if the library is not being preloaded.
pub fn register(name: &'static CStr, bytes: usize, locks: usize) {
    if is_preloading() {
        REGIONS.with_borrow_mut(|regions| {
            regions.push(Registered { name, bytes, locks, made: None });
        });
    }
}

/// A region that was registered; `None` without preload.
pub fn region(name: &CStr) -> Option<Region> {
    REGIONS.with_borrow(|regions| regions.iter().find(|one| one.name == name)?.made)
}

/// Hooks into the start of the server. Called after all regions were registered.
pub fn init() {
    if is_preloading() {
        version::when_memory_is_asked_for(request);
        // SAFETY: hooks are variables of the postmaster, which has one thread.
        unsafe {
            PREVIOUS_STARTUP = pg_sys::shmem_startup_hook;
            pg_sys::shmem_startup_hook = Some(startup);
        }
    }
}

static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;

fn request() {
    REGIONS.with_borrow(|regions| {
        for one in regions {
            // SAFETY: called while the postmaster asks for it.
            unsafe {
                pg_sys::RequestAddinShmemSpace(one.bytes);
                if one.locks > 0 {
                    pg_sys::RequestNamedLWLockTranche(one.name.as_ptr(), one.locks as c_int);
                }
            }
        }
    });
}

unsafe extern "C-unwind" fn startup() {
    // SAFETY: the hook that was there before; then what every user of shared memory does.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP {
            previous();
        }
        let init_lock = addin_lock();
        pg_sys::LWLockAcquire(init_lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        REGIONS.with_borrow_mut(|regions| {
            for one in regions {
                let mut found = false;
                let memory =
                    pg_sys::ShmemInitStruct(one.name.as_ptr(), one.bytes, &mut found).cast::<u8>();
                if !found {
                    memory.write_bytes(0, one.bytes);
                }
                let locks = if one.locks > 0 {
                    pg_sys::GetNamedLWLockTranche(one.name.as_ptr())
                } else {
                    std::ptr::null_mut()
                };
                one.made = Some(Region { memory, locks, lock_count: one.locks });
            }
        });
        pg_sys::LWLockRelease(init_lock);
        if let Some(made) = WHEN_MADE.get() {
            made();
        }
        pg_sys::on_shmem_exit(Some(at_exit), pg_sys::Datum::null());
    }
}

/// `AddinShmemInitLock`, which is a macro in C.
unsafe fn addin_lock() -> *mut pg_sys::LWLock {
    const ADDIN_SHMEM_INIT: usize = 21;
    // SAFETY: one of the server's fixed locks.
    unsafe { &raw mut (*pg_sys::MainLWLockArray.add(ADDIN_SHMEM_INIT)).lock }
}

/// The memory goes: the server stops, or starts anew after a crash of one of its processes. Only the
/// postmaster comes here with nobody else alive.
unsafe extern "C-unwind" fn at_exit(_: c_int, _: pg_sys::Datum) {
    // SAFETY: a variable of the process.
    if !unsafe { pg_sys::IsUnderPostmaster } {
        // Whoever crashed may have damaged the memory. That must not end the postmaster, too.
        if let Some(goes) = BEFORE_LOSS.get() {
            let _ = std::panic::catch_unwind(goes);
        }
    }
}

impl Region {
    /// Runs `work` alone with a lock of the region, or with others that only read.
    pub fn locked<R>(&self, lock: usize, exclusively: bool, work: impl FnOnce() -> R) -> R {
        assert!(lock < self.lock_count, "a lock that was asked for");
        let mode = if exclusively {
            pg_sys::LWLockMode::LW_EXCLUSIVE
        } else {
            pg_sys::LWLockMode::LW_SHARED
        };
        // SAFETY: a lock of the region. Nothing in `work` raises an error of Postgres's: it only copies
        // memory.
        unsafe {
            let lock = &raw mut (*self.locks.add(lock)).lock;
            unguarded::LWLockAcquire(lock, mode);
            let result = work();
            unguarded::LWLockRelease(lock);
            result
        }
    }
}

/// Without pgrx's guard: they are called in callbacks of transactions, and raise nothing while fewer than
/// 200 locks are held.
mod unguarded {
    use pgrx::pg_sys;
    unsafe extern "C-unwind" {
        pub fn LWLockAcquire(lock: *mut pg_sys::LWLock, mode: pg_sys::LWLockMode::Type) -> bool;
        pub fn LWLockRelease(lock: *mut pg_sys::LWLock);
    }
}
