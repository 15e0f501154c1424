//! The worker of a database: writes events from its queue to the log, seals the log, and has the seals
//! signed.

use std::time::Duration;

use fieldcrypt_audit::{Checkpoint, Note, SignerStatement};

use super::publisher::Publisher;
use super::seal::{self, NewSigner};
use super::settings::{self, SEAL_ROWS};
use super::signer::{Answer, Question};
use super::tree::Tree;
use super::{mac_key, write};
use crate::error::Error;
use crate::events::{self, Event, QueuedEvent};
use crate::keyring::{self, hexadecimal};
use crate::pg::audit_memory::Queue;
use crate::pg::client::Client;
use crate::pg::extension::{self, Extension};
use crate::pg::{background, clock, key_table, log_table, report, security, spi};

/// Bytes of events that one transaction writes.
const BATCH_BYTES: u64 = 512 * 1024;
/// Steps of sealing in one transaction.
const SEAL_STEPS: usize = 10;
/// How long it sleeps when nobody wakes it.
const SLEEP: Duration = Duration::from_millis(500);
const SHORT_SLEEP: Duration = Duration::from_millis(50);
/// How long it goes on to seal when the server stops.
const LAST_SEALING: i64 = 3_000_000;
/// How long it waits for a signature.
const SIGNATURE_WAIT: i64 = 10_000_000;

/// Runs until there has been nothing to do for a while.
pub fn run(queue: Queue) {
    Worker { queue, publisher: Publisher::new(), refused_at: None, access_due: i64::MIN }.run();
}

struct Worker {
    queue: Queue,
    publisher: Publisher,
    /// When the signer refused, in Postgres's time: it is not asked again at once.
    refused_at: Option<i64>,
    /// When it is to be looked at who may do what, in Postgres's time.
    access_due: i64,
}

/// What one transaction did.
#[derive(Default)]
struct Step {
    /// The extension is in this database.
    is_installed: bool,
    /// Events and rows.
    done: u64,
    /// A checkpoint is due.
    is_due: bool,
    /// Rows may be left that could be sealed now.
    has_more: bool,
    /// Nothing was done: it is too early, or somebody wants to drop the extension.
    is_held: bool,
    /// Somebody keeps the log from being sealed.
    is_unsealed: bool,
}

impl Step {
    const HELD: Self = Self {
        is_installed: true,
        done: 0,
        is_due: false,
        has_more: false,
        is_held: true,
        is_unsealed: false,
    };
}

impl Worker {
    fn run(mut self) {
        let mut busy_at = clock::now();
        let mut stopping_since = None;
        loop {
            // Both are asked before the step: what comes later is found by the next one.
            let is_stopping = background::is_stopping();
            if self.queue.yielding_until() > clock::now() {
                // Rows may wait for their checkpoint.
                self.queue.want_worker();
                return;
            }
            self.queue.take_wanted();
            let step = self.step();
            if !step.is_installed {
                return;
            }
            // After what has happened: that may not wait for it. What it writes is sealed by the next step.
            if !is_stopping && !step.is_held && self.look_at_access() {
                continue;
            }
            let now = clock::now();
            if step.done > 0 {
                busy_at = now;
            }
            // Rows that are not sealed yet keep: the next worker does it.
            let is_late = is_stopping && now - *stopping_since.get_or_insert(now) > LAST_SEALING;
            if step.is_held && is_stopping {
                // What stays in the queue goes to the server log.
                if is_late {
                    return;
                }
                background::nap(SHORT_SLEEP);
                continue;
            }
            if is_late && !self.queue.has_events() {
                self.sign(false);
                return;
            }
            if step.is_due {
                self.sign(false);
            }
            let is_drained = !step.has_more && !self.queue.has_work();
            let is_idle = clock::now() - busy_at >= settings::linger() && !step.is_unsealed;
            if is_drained && (is_stopping || is_idle) {
                if !seal::is_complete() {
                    continue;
                }
                match self.sign(true) {
                    // The statement about a new key is a row of the log itself.
                    Signed::WithNewKey => continue,
                    Signed::Done | Signed::Not => {}
                }
                if !self.queue.has_work() {
                    self.publisher.finish(self.queue);
                    return;
                }
            }
            self.publisher.look_after(self.queue);
            if (is_drained || step.is_held) && !is_stopping {
                background::wait(SLEEP);
            }
        }
    }

    /// Records which roles each privilege reaches, if that has changed. Whether it was time to look.
    fn look_at_access(&mut self) -> bool {
        let Some(interval) = settings::access_interval() else { return false };
        let now = clock::now();
        if now < self.access_due {
            return false;
        }
        self.access_due = now + interval;
        let queue = self.queue;
        background::in_transaction(
            |problem| queue.set_problem(Some(problem)),
            || {
                if extension::hold() != Extension::Held {
                    return Ok(());
                }
                security::as_owner(|| spi::execute("SELECT fieldcrypt_internal.access_step()", &[]))
                    .map(|_| ())
            },
        );
        true
    }

    /// Writes what is queued, and seals what is visible. Who keeps the log from being sealed keeps nothing from being
    /// recorded.
    fn step(&mut self) -> Step {
        let queue = self.queue;
        let (records, position) = queue.records(queue.tail(), BATCH_BYTES);
        let (overflowed, crashed) = queue.gaps();
        let mut events: Vec<QueuedEvent> =
            records.iter().filter_map(|record| QueuedEvent::decode(record)).collect();
        let unreadable = records.len() - events.len();
        let step = background::in_transaction(
            |problem| queue.set_problem(Some(problem)),
            || {
                match extension::hold() {
                    Extension::Held => {}
                    Extension::NotInstalled => return Ok(Step::default()),
                    Extension::Wanted => return Ok(Step::HELD),
                }
                if events.first().is_some_and(|event| is_too_early(queue, event)) {
                    return Ok(Step::HELD);
                }
                let client = Client::now();
                let mut gap = |count: u64, reason: &str| {
                    if count > 0 {
                        events.push(QueuedEvent::gap(&client, count, reason));
                    }
                };
                gap(overflowed, "the queue was full: these events are in the server log");
                gap(
                    crashed,
                    "the server crashed before these events were written: they are in the server log",
                );
                gap(unreadable as u64, "the queue was damaged: these events are lost");
                let may_seal = self.may_seal()?;
                write::write_events(&events, may_seal)?;
                let mut step =
                    Step { is_installed: true, done: events.len() as u64, ..Step::default() };
                step.is_unsealed = !may_seal;
                for _ in 0..if may_seal { SEAL_STEPS } else { 0 } {
                    let sealed = seal::seal_step(SEAL_ROWS as usize)?;
                    step.done += sealed.rows;
                    step.is_due = sealed.is_due;
                    step.has_more = sealed.has_more;
                    if !sealed.has_more {
                        break;
                    }
                }
                queue.will_commit(position);
                Ok(step)
            },
        );
        if step.is_held {
            return step;
        }
        let mut position = position;
        if !step.is_installed {
            position =
                events::to_server_log(queue, "the extension is not installed in its database").end;
            queue.forget_sealed();
        }
        queue.written(position, overflowed, crashed, clock::now());
        step
    }

    /// Whether nobody keeps the log from being sealed until the end of this transaction. Says who does: nobody's
    /// transaction is waited for.
    fn may_seal(&self) -> Result<bool, Error> {
        const HELD_UP: &str = "sealing is held up by";
        let queue = self.queue;
        let told = queue.status().problem.filter(|problem| problem.starts_with(HELD_UP));
        if log_table::try_lock_sealing()? {
            if told.is_some() {
                queue.set_problem(None);
            }
            return Ok(true);
        }
        let by = match sealing_holder()? {
            Some(0) => "a prepared transaction".to_owned(),
            Some(process) => format!("the open transaction of process {process}"),
            None => return Ok(false),
        };
        let problem = format!("{HELD_UP} {by}");
        if told.as_ref() != Some(&problem) {
            report::log(&format!("pg_fieldcrypt: the audit log is not sealed: {problem}"));
            queue.set_problem(Some(&problem));
        }
        Ok(false)
    }

    /// Has the launcher sign what is sealed, and stores the checkpoint.
    fn sign(&mut self, is_final: bool) -> Signed {
        const PAUSE: i64 = 30_000_000;
        if self.refused_at.is_some_and(|at| clock::now() - at < PAUSE) {
            return Signed::Not;
        }
        let queue = self.queue;
        let on_error = |problem: &str| queue.set_problem(Some(problem));
        let Some((unsigned, last_is_final)) = background::in_transaction(on_error, || {
            if extension::hold() != Extension::Held || !self.may_seal()? {
                return Ok(None);
            }
            let Some(unsigned) = seal::unsigned()? else { return Ok(None) };
            Ok(Some((unsigned, last_is_final()?)))
        }) else {
            return Signed::Not;
        };
        let is_new = !unsigned.range.is_empty();
        if !is_new && (!is_final || last_is_final != Some(false)) {
            return Signed::Not;
        }
        let answer = self.ask(&question(&unsigned, is_final, last_is_final));
        let Answer { note: Some(note), .. } = &answer else {
            self.refused_at = Some(clock::now());
            let problem = answer.problem.as_deref().unwrap_or("the launcher signs nothing");
            if queue.status().problem.as_deref() != Some(problem) {
                report::log(&format!("pg_fieldcrypt: the audit log is not sealed: {problem}"));
                queue.set_problem(Some(problem));
            }
            return Signed::Not;
        };
        self.refused_at = None;
        let known = unsigned.signer.as_ref().filter(|(_, key)| *key == answer.key);
        let is_known = known.is_some();
        let stored = background::in_transaction(on_error, || {
            // The launcher gives the checkpoint once more to who comes next.
            if extension::hold() != Extension::Held || !self.may_seal()? {
                return Ok(None);
            }
            let signer = match known {
                Some((id, _)) => *id,
                None => store_signer(&answer)?,
            };
            seal::store_checkpoint(note, signer)?;
            let checkpoint =
                Note::parse(note).ok().and_then(|note| Checkpoint::parse(note.text()).ok());
            Ok(Some(checkpoint.map_or(0, |checkpoint| checkpoint.size)))
        });
        let Some(size) = stored else { return Signed::Not };
        queue.checkpoint_stored(size, clock::now());
        if !self.publisher.is_failing() {
            queue.set_problem(None);
        }
        self.publisher.publish(queue, note, is_final);
        if !is_known {
            Signed::WithNewKey
        } else if size < unsigned.frontier.size() {
            // An earlier one, that was signed and never stored.
            self.sign(is_final)
        } else {
            Signed::Done
        }
    }

    fn ask(&self, question: &Question) -> Answer {
        let until = clock::now() + SIGNATURE_WAIT;
        let serial = serde_json::to_vec(question).ok().and_then(|text| self.queue.ask(&text));
        let Some(serial) = serial else {
            return Answer::refusal("too many rows to be signed at once");
        };
        while clock::now() < until {
            if let Some(answer) = self.queue.answer_to(serial) {
                return serde_json::from_slice(&answer)
                    .unwrap_or_else(|_| Answer::refusal("the launcher's answer is garbled"));
            }
            background::nap(Duration::from_millis(20));
        }
        Answer::refusal("the launcher does not answer")
    }
}

enum Signed {
    /// Nothing to be signed, or nobody who does.
    Not,
    /// A checkpoint was stored.
    Done,
    /// And before it, the key that signed it.
    WithNewKey,
}

fn question(unsigned: &Tree, is_final: bool, last_is_final: Option<bool>) -> Question {
    let place = unsigned.origin.place;
    Question {
        log: unsigned.origin.log.to_string(),
        place: (place.system_identifier, place.database, place.timeline),
        frontier: hexadecimal(&unsigned.stored.to_bytes()),
        previous: unsigned.previous.map(|hash| hexadecimal(&hash)),
        range: hexadecimal(&unsigned.range.to_bytes()),
        is_final,
        known_key: unsigned.signer.as_ref().map(|(_, key)| key.clone()),
        is_after_final: last_is_final.unwrap_or(true),
    }
}

/// Whether the first key of the database is probably being made by who caused this event: with it the event
/// can be authenticated.
fn is_too_early(queue: Queue, event: &QueuedEvent) -> bool {
    const PATIENCE: i64 = 3_000_000;
    let status = queue.status();
    clock::now() - event.at < PATIENCE
        && status.used < status.bytes / 4
        && !background::is_stopping()
        && matches!(key_table::has_keys(), Ok(false))
}

/// Whose transaction holds the lock of sealing: a process, or 0 for a prepared transaction; `None` if it has just ended.
fn sealing_holder() -> Result<Option<i64>, Error> {
    security::as_owner(|| {
        spi::first_row(
            "SELECT coalesce(l.pid, 0)::pg_catalog.int8 FROM pg_catalog.pg_locks AS l
              WHERE l.locktype OPERATOR(pg_catalog.=) 'object' AND l.granted
                AND l.database OPERATOR(pg_catalog.=) (SELECT d.oid FROM pg_catalog.pg_database AS d
                      WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())
                AND l.classid OPERATOR(pg_catalog.=) 'fieldcrypt.audit_checkpoints'::pg_catalog.regclass
                AND l.mode OPERATOR(pg_catalog.=) 'ExclusiveLock'
              LIMIT 1",
            &[],
            |row| row.bigint(1),
        )
    })
}

/// Whether the last checkpoint of the log closed it; `None` if it has none.
fn last_is_final() -> Result<Option<bool>, Error> {
    security::as_owner(|| {
        spi::first_row(
            "SELECT c.is_final FROM fieldcrypt.audit_checkpoints AS c ORDER BY c.id DESC LIMIT 1",
            &[],
            |row| row.boolean(1),
        )
    })
}

/// Stores the statement by which the log gets to know a signing key, and records it.
fn store_signer(answer: &Answer) -> Result<i64, Error> {
    let garbled = || Error::Internal("the statement about a signing key is garbled".into());
    let own = answer.introduction.as_deref().ok_or_else(garbled)?;
    let note = Note::parse(own).map_err(|_| garbled())?;
    let (statement, _) = SignerStatement::open(&note).map_err(|_| garbled())?;
    let by_audit_key = || {
        let key_id = mac_key::active()?;
        keyring::with_audit_key(key_id, |key| statement.by_audit_key(key_id, key)).ok()?.ok()
    };
    let (introduced_by, proof) = match &answer.succession {
        Some(note) => ("successor", note.clone()),
        None => match by_audit_key() {
            Some(note) => ("mac", note),
            None => ("itself", own.to_owned()),
        },
    };
    let id = seal::store_signer(&NewSigner {
        public_key: &answer.key,
        introduced_by,
        at: statement.at,
        from_size: statement.size,
        is_clean: statement.is_clean,
        proof: &proof,
    })?;
    let handover = if statement.is_clean { "clean" } else { "unclean" };
    let reason = format!("{handover} handover to {}, vouched for by: {introduced_by}", answer.key);
    super::record_reason(Event::AuditStarted, &reason, clock::now())?;
    Ok(id)
}
