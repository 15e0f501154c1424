//! When another process of the server began.

use pgrx::pg_sys;

/// The start of a process that has a session, as its entry among the activities of the server says it; `None` if it has none.
///
/// The entries are copied, and stay as they are until the transaction ends.
pub(in super::super) fn session_start(process: i32) -> Option<i64> {
    // SAFETY: the entries are numbered from 1 to their count; each is a copy in this process's memory, or NULL.
    unsafe {
        (1..=pg_sys::pgstat_fetch_stat_numbackends()).find_map(|index| {
            #[cfg(feature = "pg15")]
            let entry = pg_sys::pgstat_fetch_stat_local_beentry(index);
            #[cfg(not(feature = "pg15"))]
            let entry = pg_sys::pgstat_get_local_beentry_by_index(index);
            let status = &entry.as_ref()?.backendStatus;
            (status.st_procpid == process).then_some(status.st_proc_start_timestamp)
        })
    }
}
