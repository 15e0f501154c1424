//! The queues of events that processes share: one ring of bytes for each database that has any.
//!
//! Sessions append to the queue of their database; the worker of that database takes from it. A record is
//! visible only when it is whole: its bytes come before the position that tells of them. So a process that
//! is killed while it writes leaves nothing half-written, and whoever is left alone can read what is there.
//!
//! All memory is given by the caller, and all of it is atomics: nothing that another process does to it, nor
//! a crash that damages it, is more than a wrong number here. What the system has to give is a [`Platform`].
//!
//! Reading ([`Queue::records`], the positions, [`Queue::gaps`], [`Queue::has_work`]) takes no lock: the
//! postmaster does it when its children are dead, and may wait for nobody.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bytes;
mod directory;
mod platform;
mod questions;
mod queue;
mod slot;
mod status;
mod sync;
mod work;

pub use directory::{Directory, Known, Queues};
pub use platform::{Lock, Mode, Platform};
pub use queue::{Moved, Queue, Refused};
pub use slot::{MESSAGE, Slot};
pub use status::Status;
pub use sync::AtomicU8 as Byte;
