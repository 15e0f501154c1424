//! The end of a backend, at which Rust's destructors don't run.

use std::cell::Cell;

use pgrx::pg_sys::{self, Datum};
use rustix::process::{Pid, Signal, kill_process_group};

thread_local! {
    static WATCHED_GROUP: Cell<u32> = const { Cell::new(0) };
    static IS_REGISTERED: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, the end of this backend kills a process group.
pub struct Watch(());

impl Watch {
    /// Watches over a process group, named by its leader.
    pub fn over(leader: u32) -> Self {
        if !IS_REGISTERED.replace(true) {
            // SAFETY: the callback lives as long as the library, which is never unloaded.
            unsafe { pg_sys::before_shmem_exit(Some(at_exit), Datum::null()) };
        }
        WATCHED_GROUP.set(leader);
        Self(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHED_GROUP.set(0);
    }
}

/// Kills a process group, named by its leader.
pub fn kill_group(leader: u32) {
    if let Some(group) = i32::try_from(leader).ok().and_then(Pid::from_raw) {
        // Gone already is as good.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

unsafe extern "C-unwind" fn at_exit(_: i32, _: Datum) {
    match WATCHED_GROUP.get() {
        0 => {}
        leader => kill_group(leader),
    }
}
