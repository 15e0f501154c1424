//! The process, and where it is.

use std::ffi::CStr;

use fieldcrypt_envelope::Session;
use pgrx::pg_sys;

/// This process.
#[inline]
pub fn process() -> i32 {
    // SAFETY: reads a variable of the process.
    unsafe { pg_sys::MyProcPid }
}

/// The session, by which loose values are known as its own: in a process that works for another one, that.
pub fn of_loose_values() -> Session {
    // SAFETY: reads variables of the process; its entry among those of the server stays, and so does its leader's.
    let (process, own_start) = unsafe {
        let leader = (*pg_sys::MyProc).lockGroupLeader;
        let process = if leader.is_null() { pg_sys::MyProcPid } else { (*leader).pid };
        (process, pg_sys::MyStartTimestamp)
    };
    let is_own = process == self::process();
    Session {
        database: database(),
        process: process.unsigned_abs(),
        started_at: if is_own { own_start } else { start_of_leader(process, own_start) },
    }
}

/// When the session began that a parallel worker works for: it has taken plaintext in before there was a worker. A worker has one
/// leader for as long as it lives.
fn start_of_leader(leader: i32, own_start: i64) -> i64 {
    thread_local! { static START: std::cell::OnceCell<i64> = const { std::cell::OnceCell::new() } }
    START.with(|start| {
        *start.get_or_init(|| super::version::session_start(leader).unwrap_or(own_start))
    })
}

/// The oid of the session's database.
pub fn database() -> u32 {
    // SAFETY: reads a variable of the backend.
    unsafe { pg_sys::MyDatabaseId }.to_u32()
}

/// The data directory.
pub fn data_directory() -> Option<std::path::PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    // SAFETY: set by the postmaster before any backend exists, never freed.
    unsafe {
        (!pg_sys::DataDir.is_null()).then(|| {
            std::path::PathBuf::from(std::ffi::OsStr::from_bytes(
                CStr::from_ptr(pg_sys::DataDir).to_bytes(),
            ))
        })
    }
}
