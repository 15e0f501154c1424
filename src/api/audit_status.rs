//! What shared memory tells of this database's queue.

use serde_json::{Value, json};

use crate::error::Error;
use crate::pg::{audit_memory, clock, session, transaction};

crate::pg::sql_functions! {
    audit_status() -> text;
}

const NO_LAUNCHER: &str = "the launcher of the audit log does not run: all max_worker_processes are in use, or it was terminated a moment ago";

fn audit_status() -> Result<Value, Error> {
    let queue = audit_memory::all().find(|queue| queue.database() == session::database());
    let status = queue.map(|queue| queue.status());
    let time = |time: i64| (time != 0).then(|| clock::iso_time(time));
    let has_no_launcher =
        audit_memory::exists() && !transaction::is_standby() && audit_memory::launcher() == 0;
    let problem = match has_no_launcher {
        true => Some(NO_LAUNCHER.to_owned()),
        false => status.as_ref().and_then(|status| status.problem.clone()),
    };
    Ok(json!({
        "is_preloaded": audit_memory::exists(),
        "ring_bytes": status.as_ref().map(|status| status.bytes),
        "ring_used": status.as_ref().map(|status| status.used),
        "queued_events": status.as_ref().map(|status| status.queued),
        "gap_events": status.as_ref().map_or(0, |status| status.overflowed) + audit_memory::without_queue(),
        "worker_pid": status.as_ref().map(|status| status.worker).filter(|process| *process > 0),
        "last_written_at": status.as_ref().and_then(|status| time(status.written_at)),
        "last_checkpoint_at": status.as_ref().and_then(|status| time(status.checkpoint_at)),
        "last_checkpoint_size": status.as_ref().filter(|status| status.checkpoint_at != 0).map(|status| status.checkpoint_size),
        "last_problem": problem,
    }))
}
