//! The end of a backend, at which Rust's destructors don't run.

use std::cell::Cell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use pgrx::pg_sys::{self, Datum};
use rustix::process::{
    Pid, Signal, getpid, getppid, kill_process_group, set_parent_process_death_signal,
};

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

/// A command for the shell, in a process group of its own, whose end is the end of the group. If this process ends without
/// a word to anybody, killed or by an immediate shutdown, the kernel tells the leader, and the leader kills the group.
pub fn shell_command(text: &OsStr) -> Command {
    // A signal that ended the command ends the leader as well, so that it is told apart from an exit code.
    const LEADER: &str = "trap 'kill -KILL 0' TERM
/bin/sh -c \"$1\" &
wait $!
code=$?
[ $code -le 128 ] || kill -$((code - 128)) $$
exit $code";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", LEADER, "sh"]).arg(text).process_group(0);
    let parent = getpid();
    // SAFETY: between fork and exec; two system calls, no memory, no lock.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::TERM))?;
            // It may have ended before.
            if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
        });
    }
    command
}

/// Ends the process if the postmaster is gone, as Postgres's own waits do: nobody starts the server again while anybody
/// has its memory.
pub fn with_the_postmaster() {
    // SAFETY: reads variables of the process; the end of the process, whose callbacks run.
    unsafe {
        let parent = getppid().map(Pid::as_raw_pid);
        if pg_sys::IsUnderPostmaster && parent != Some(pg_sys::PostmasterPid) {
            pg_sys::proc_exit(1);
        }
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
