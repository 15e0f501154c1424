//! The worker of a database: writes events from its queue to the log, and seals the log.

use std::time::Duration;

use super::queue::{self, QueuedEvent};
use super::{seal, settings};
use crate::pg::audit_memory::{self, Queue};
use crate::pg::{background, catalog, session};

/// Bytes of events that one transaction writes.
const BATCH_BYTES: u64 = 256 * 1024;
/// Rows that are sealed at a time.
const SEAL_ROWS: usize = 1000;
/// How long it sleeps when nobody wakes it.
const SLEEP: Duration = Duration::from_millis(500);

/// Runs until there has been nothing to do for a while.
pub fn run(queue: Queue) {
    let mut idle_since = session::now();
    loop {
        let is_stopping = background::is_stopping();
        if audit_memory::yielding_until() > session::now() {
            return;
        }
        let wanted = queue.take_wanted();
        match step(queue) {
            Step::Wrote(0) if !wanted => {}
            Step::Wrote(_) => idle_since = session::now(),
            Step::NotInstalled => return,
        }
        if is_stopping && !queue.has_work() {
            return;
        }
        let now = session::now();
        if now - idle_since >= settings::linger() && !queue.has_work() {
            return;
        }
        if !queue.has_work() {
            background::wait(SLEEP);
        }
    }
}

enum Step {
    /// So many events.
    Wrote(usize),
    /// The extension is not in this database, or no longer: its events go to the server log.
    NotInstalled,
}

/// One transaction.
fn step(queue: Queue) -> Step {
    let (records, position) = queue.records(queue.tail(), BATCH_BYTES);
    let (overflowed, crashed) = queue.gaps();
    let events: Vec<QueuedEvent> =
        records.iter().filter_map(|record| QueuedEvent::decode(record)).collect();
    let is_installed = background::in_transaction(
        |problem| queue.set_problem(Some(problem)),
        || {
            if catalog::owner_of_keys().is_err() {
                return Ok(false);
            }
            seal::write_events(&events)?;
            while seal::seal_step(SEAL_ROWS)?.has_more {}
            queue.will_commit(position);
            Ok(true)
        },
    );
    if !is_installed {
        queue::to_server_log(queue, "the extension is not installed in its database");
    }
    queue.written(position, overflowed, crashed, session::now());
    if is_installed { Step::Wrote(events.len()) } else { Step::NotInstalled }
}
