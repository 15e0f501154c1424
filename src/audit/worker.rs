//! The worker of a database: writes events from its queue to the log, and seals the log.

use std::time::Duration;

use super::queue::{self, QueuedEvent};
use super::settings;
use crate::error::Error;
use crate::pg::audit_memory::{self, Queue};
use crate::pg::spi::{self, Parameter};
use crate::pg::{background, catalog, encoding, session};

/// Bytes of events that one transaction writes.
const BATCH_BYTES: u64 = 256 * 1024;
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
            for event in &events {
                write(event)?;
            }
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

fn write(event: &QueuedEvent) -> Result<(), Error> {
    session::as_owner(|| {
        spi::execute(
            "INSERT INTO fieldcrypt.audit_log
                    (id, at, event, actor, role, client_address, application, backend_pid, transaction_id,
                     tenant, key_id, reason, error_code, value_count)
             SELECT pg_catalog.nextval('fieldcrypt.audit_log_id_seq'), $1, $2, $3, $4, $5::pg_catalog.inet, $6, $7, NULL, $8, $9, $10, $11, $12",
            &[
                Parameter::Time(Some(event.at)),
                Parameter::Text(Some(event.event.as_bytes())),
                Parameter::Text(Some(&event.client.actor)),
                Parameter::Text(Some(&event.client.role)),
                Parameter::Text(event.client.address.as_deref().map(str::as_bytes)),
                Parameter::Text(Some(&event.client.application)),
                Parameter::Integer(event.client.process),
                Parameter::Text(event.tenant.as_deref()),
                Parameter::BigInt(event.key_id()),
                Parameter::Text(event.reason.as_deref()),
                Parameter::Text(event.error_code.as_deref().map(str::as_bytes)),
                Parameter::BigInt(event.value_count),
            ],
        )
    })?;
    let _ = encoding::lossy;
    Ok(())
}
