//! Memory, locks and latches of a made-up server. Also of one whose processes loom schedules.

#![allow(dead_code, reason = "each test uses its part")]

#[cfg(loom)]
use loom::sync::{
    RwLock,
    atomic::{AtomicBool, Ordering},
};
#[cfg(not(loom))]
use std::sync::{
    RwLock,
    atomic::{AtomicBool, Ordering},
};

use fieldcrypt_event_queue::{Byte, Directory, Lock, Mode, Platform, Queue, Queues, Slot};

/// Nothing: latches are known by their addresses.
#[derive(Debug)]
pub struct Latch;

/// What the processes of a server share.
pub struct Server {
    directory: Directory<Latch>,
    slots: Vec<Slot<Latch>>,
    rings: Vec<Byte>,
    locks: Vec<RwLock<()>>,
    latches: Vec<AtomicBool>,
}

impl Server {
    pub fn new(queues: usize, ring_bytes: usize) -> Self {
        Self {
            directory: Directory::new(),
            slots: (0..queues).map(|_| Slot::new()).collect(),
            rings: (0..queues * ring_bytes).map(|_| Byte::new(0)).collect(),
            locks: (0..=queues).map(|_| RwLock::new(())).collect(),
            latches: (0..3).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    pub fn queues(&self) -> Queues<'_, &Self> {
        Queues::new(self, &self.directory, &self.slots, &self.rings)
    }

    /// The queue of a database, which must get one.
    pub fn own(&self, database: u32) -> Queue<'_, &Self> {
        self.queues().own(database, &Default::default()).expect("a queue that is free")
    }

    /// What is in the memory of a queue.
    pub fn slot(&self, index: usize) -> String {
        format!("{:?}", self.slots[index])
    }

    /// Whether a process has been woken since it looked last.
    pub fn is_woken(&self, latch: usize) -> bool {
        self.latches[latch - 1].swap(false, Ordering::AcqRel)
    }
}

/// The latch of a process, numbered from 1 on.
pub fn latch(number: usize) -> *mut Latch {
    std::ptr::without_provenance_mut(number)
}

impl Platform for &Server {
    type Latch = Latch;

    fn locked<R>(&self, lock: Lock, mode: Mode, work: impl FnOnce() -> R) -> R {
        let lock = match lock {
            Lock::Directory => &self.locks[0],
            Lock::Queue(index) => &self.locks[1 + index],
        };
        match mode {
            Mode::Shared => {
                let _held = lock.read().unwrap();
                work()
            }
            Mode::Exclusive => {
                let _held = lock.write().unwrap();
                work()
            }
        }
    }

    fn wake(&self, latch: *mut Latch) {
        // What came before is there for whoever wakes up.
        self.latches[latch.addr() - 1].swap(true, Ordering::AcqRel);
    }
}
