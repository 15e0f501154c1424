//! The launcher: starts a worker for each database whose queue has events, and signs checkpoints.
//!
//! It is connected to no database and runs no SQL.

use std::collections::HashMap;
use std::time::Duration;

use super::settings;
use super::signer::Signers;
use crate::events::{self, shutdown_marker};
use crate::pg::audit_memory::{self, Queue};
use crate::pg::background::{self, Started};
use crate::pg::{clock, report};

/// How long it sleeps when nobody wakes it.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);
/// How long it sleeps while something is to be done that it can't do yet.
const SHORT_SLEEP: Duration = Duration::from_millis(200);
/// How long it waits for workers to finish when the server stops.
const LAST_WAIT: i64 = 30_000_000;
/// Least time between two complaints that no worker can be started.
const COMPLAINT_PAUSE: i64 = 60_000_000;

struct Launcher {
    signers: Signers,
    started: HashMap<usize, Started>,
    complained_at: i64,
}

/// Runs until the server stops.
pub fn run() {
    background::forbid_core_dumps();
    let signers = Signers::new(shutdown_marker::take());
    let mut launcher = Launcher { signers, started: HashMap::new(), complained_at: i64::MIN };
    let mut sleep = Duration::ZERO;
    let mut access_looked_at = clock::now();
    while background::wait(sleep) {
        launcher.signers.end_epochs();
        // A worker looks when it begins, also where nothing else is to be done.
        if settings::access_interval().is_some_and(|every| clock::now() - access_looked_at >= every)
        {
            access_looked_at = clock::now();
            audit_memory::all().for_each(Queue::look_now);
        }
        let mut is_done = true;
        for queue in audit_memory::all() {
            is_done &= launcher.look_after(queue);
        }
        sleep = if is_done { LONGEST_SLEEP } else { SHORT_SLEEP };
    }
    launcher.finish();
}

impl Launcher {
    /// Whether nothing is left to do that could be done soon.
    fn look_after(&mut self, queue: Queue) -> bool {
        if queue.database() == 0 {
            return true;
        }
        self.sign(queue);
        if queue.worker() == -1 && self.started.get(&queue.index()).is_none_or(Started::is_over) {
            queue.miss_worker(clock::now());
        }
        if queue.worker() != 0 {
            return queue.worker() > 0;
        }
        self.started.remove(&queue.index());
        if queue.is_dropped() {
            let logged = events::to_server_log(queue, "its database was dropped");
            queue.written(logged.end, 0, 0, clock::now());
            self.signers.forget(queue.database());
            queue.end();
            return true;
        }
        let now = clock::now();
        if !queue.has_work() && !queue.is_to_be_looked_at(now) {
            return true;
        }
        if now < queue.not_before().max(queue.yielding_until()) {
            return false;
        }
        if !queue.expect_worker() {
            return false;
        }
        match background::start_worker(queue) {
            Some(started) => {
                self.started.insert(queue.index(), started);
                true
            }
            None => {
                queue.miss_worker(now);
                let problem = "no worker for the audit log can be started: all max_worker_processes are in use";
                queue.set_problem(Some(problem));
                if now.saturating_sub(self.complained_at) > COMPLAINT_PAUSE {
                    self.complained_at = now;
                    report::log(&format!("pg_fieldcrypt: {problem}"));
                }
                false
            }
        }
    }

    fn sign(&mut self, queue: Queue) {
        if let Some((serial, question)) = queue.question() {
            queue.answer(serial, &self.signers.answer(queue.database(), &question));
        }
    }

    /// The server stops, and the workers with it: they still need signatures.
    fn finish(&mut self) {
        let last = clock::now() + LAST_WAIT;
        while audit_memory::all().any(|queue| queue.worker() > 0) && clock::now() < last {
            audit_memory::all().for_each(|queue| self.sign(queue));
            background::nap(Duration::from_millis(20));
        }
        // A queue that nobody emptied goes to the server log with the memory. Who sends the launcher away while
        // the server goes on does not make an orderly end of it.
        if background::is_server_stopping()
            && !audit_memory::all().any(|queue| queue.worker() > 0 || queue.has_work())
        {
            shutdown_marker::leave();
        }
    }
}
