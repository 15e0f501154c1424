//! Events that are recorded although their transaction is rolled back.
//!
//! A session appends them to a queue in shared memory; a worker writes them to the log in a transaction
//! of its own. Where there is no queue (no preload, a standby) they go to the server log.

use fieldcrypt_envelope::{sha256, to_ascii};
use serde_json::{Value, json};

use super::settings::{self, MasterKeyLoads, OnOverflow};
use super::{Event, shutdown_marker};
use crate::error::Error;
use crate::pg::audit_memory::{self, Queue};
use crate::pg::client::Client;
use crate::pg::{clock, encoding, report, shared_memory, transaction};

/// An event that outlives its transaction. Texts are in the database's encoding.
#[derive(Default)]
pub struct Surviving<'a> {
    /// The tenant.
    pub tenant: Option<&'a [u8]>,
    /// The keys.
    pub key_ids: &'a [i64],
    /// How many values, or events, this stands for.
    pub value_count: Option<i64>,
    /// SQLSTATE of a failure or refusal.
    pub error_code: Option<&'a str>,
    /// Why, in the words of the error.
    pub reason: Option<&'a [u8]>,
    /// What the values are bound to.
    pub contexts: &'a [Vec<u8>],
    /// Who did it. `None` resolves it now, which reads catalogs: not in callbacks of transactions.
    pub client: Option<&'a Client>,
}

/// An event as a worker takes it from the queue. Texts are in the database's encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedEvent {
    /// When it happened, in Postgres's time.
    pub at: i64,
    /// What happened.
    pub event: Event,
    /// Who did it, and from where.
    pub client: Client,
    /// The tenant.
    pub tenant: Option<Vec<u8>>,
    /// The keys.
    pub key_ids: Vec<i64>,
    /// How many values, or events, this stands for.
    pub value_count: Option<i64>,
    /// SQLSTATE of a failure or refusal.
    pub error_code: Option<String>,
    /// Why, in the words of the error.
    pub reason: Option<Vec<u8>>,
    /// What the values are bound to; empty where that is not recorded.
    pub contexts: Vec<Vec<u8>>,
}

/// Longer reasons are cut: an event must fit into the smallest queue many times.
const MAX_REASON_BYTES: usize = 1000;

/// Asks for the memory of the queues.
pub fn init() {
    audit_memory::init(settings::queues(), settings::queue_bytes());
    shared_memory::before_loss(memory_goes);
}

/// Queues an event. Reads no catalog if `client` is given, waits for no input or output.
///
/// An event that finds no room goes to the server log and is counted. With
/// `fieldcrypt.audit_on_overflow = error` that is an error, so that the caller refuses what it tells of.
pub fn push(event: Event, details: &Surviving<'_>) -> Result<(), Error> {
    let queued = QueuedEvent {
        at: clock::now(),
        event,
        client: details.client.cloned().unwrap_or_else(Client::now),
        tenant: details.tenant.map(<[u8]>::to_vec),
        key_ids: details.key_ids.to_vec(),
        value_count: details.value_count,
        error_code: details.error_code.map(str::to_owned),
        reason: details.reason.map(|text| encoding::clipped(text, MAX_REASON_BYTES).to_vec()),
        contexts: details.contexts.to_vec(),
    };
    if !audit_memory::exists() || transaction::is_standby() {
        report::log(&queued.line(None));
        return Ok(());
    }
    if audit_memory::append(&queued.encode()) {
        return Ok(());
    }
    report::log(&queued.line(Some("overflow")));
    match settings::on_overflow() {
        OnOverflow::Log => Ok(()),
        OnOverflow::Error => Err(Error::AuditFull),
    }
}

/// Queues an event of a load of the master key, unless the last one of this database told of the same state. A
/// session is one of many: that each of them read what the one before it read is no news.
///
/// What was told is in the memory of the server, with the queue: after a start or a crash, and in another
/// database, it is told again; without such memory, by each session.
pub fn push_load(event: Event, state: &[&[u8]], details: &Surviving<'_>) -> Result<(), Error> {
    let is_standby = transaction::is_standby();
    let Some(queue) = audit_memory::own() else { return push(event, details) };
    // Where events of a standby go, nobody looks for them after its promotion.
    let place: &[u8] = if is_standby { b"standby" } else { b"" };
    let hash = sha256(&[&[place], state].concat());
    let state = hash.first_chunk().map_or(1, |bytes| u64::from_be_bytes(*bytes).max(1));
    if !queue.is_news(state) && settings::master_key_loads() == MasterKeyLoads::Changes {
        return Ok(());
    }
    let pushed = push(event, details);
    if pushed.is_err() {
        queue.is_news(0);
    }
    pushed
}

/// What was told of loads is over: the next one is told again.
pub fn forget_load() {
    if let Some(queue) = audit_memory::own() {
        queue.is_news(0);
    }
}

/// Tells that rows of this database's log may have to be sealed. Called in callbacks, too.
pub fn want_worker() {
    if audit_memory::exists()
        && !transaction::is_standby()
        && let Some(queue) = audit_memory::own()
    {
        queue.want_worker();
    }
}

/// What went to the server log.
pub struct Logged {
    /// How many events.
    pub count: u64,
    /// The position behind them.
    pub end: u64,
}

/// Sends what is in a queue to the server log.
pub fn to_server_log(queue: Queue, why: &str) -> Logged {
    let in_doubt = queue.committing();
    let mut position = queue.tail();
    let mut count = 0;
    loop {
        let (records, next) = queue.records(position, 1);
        if next == position {
            return Logged { count, end: position };
        }
        let remark = if position < in_doubt { "may be in audit_log already" } else { why };
        match records.first().map(|record| QueuedEvent::decode(record)) {
            Some(Some(event)) => report::log(&event.line(Some(remark))),
            _ => report::log("fieldcrypt audit: an event in the queue is not readable"),
        }
        count += 1;
        position = next;
    }
}

/// The postmaster is about to give up the shared memory: it stops, or a process crashed. What no worker has
/// written goes to the server log; whoever signs next does not call that a clean end.
fn memory_goes() {
    let mut crashed = Vec::new();
    for queue in audit_memory::all() {
        if queue.database() == 0 {
            continue;
        }
        let is_left = queue.has_work();
        let (overflowed, before) = queue.gaps();
        let logged = to_server_log(queue, "not written at the end of the server").count;
        if is_left {
            crashed.push((queue.database(), logged + overflowed + before));
        }
    }
    if !crashed.is_empty() {
        shutdown_marker::take();
    }
    audit_memory::remember_crash(crashed);
}

impl QueuedEvent {
    /// That so many events are not in the log.
    pub fn gap(client: &Client, count: u64, reason: &str) -> Self {
        Self {
            at: clock::now(),
            event: Event::AuditGap,
            client: client.clone(),
            tenant: None,
            key_ids: Vec::new(),
            value_count: i64::try_from(count).ok(),
            error_code: None,
            reason: Some(reason.into()),
            contexts: Vec::new(),
        }
    }

    /// The key, if there is exactly one.
    pub fn key_id(&self) -> Option<i64> {
        match self.key_ids.as_slice() {
            [one] => Some(*one),
            _ => None,
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        let mut field = |bytes: Option<&[u8]>| match bytes {
            // Every field is far shorter than 4 GiB.
            Some(bytes) => {
                out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
                out.extend_from_slice(bytes);
            }
            None => out.extend_from_slice(&u32::MAX.to_be_bytes()),
        };
        field(Some(&self.at.to_be_bytes()));
        field(Some(self.event.name().as_bytes()));
        field(Some(&self.client.actor));
        field(Some(&self.client.role));
        field(self.client.address.as_deref().map(str::as_bytes));
        field(Some(&self.client.application));
        field(Some(&i64::from(self.client.process).to_be_bytes()));
        field(self.tenant.as_deref());
        let ids: Vec<u8> = self.key_ids.iter().flat_map(|id| id.to_be_bytes()).collect();
        field(Some(&ids));
        field(self.value_count.map(i64::to_be_bytes).as_ref().map(<[u8; 8]>::as_slice));
        field(self.error_code.as_deref().map(str::as_bytes));
        field(self.reason.as_deref());
        field(self.client.subject.as_deref());
        // Their number, by which the last is known to be there.
        field(Some(&(self.contexts.len() as u64).to_be_bytes()));
        self.contexts.iter().for_each(|context| field(Some(context)));
        out
    }

    /// `None` for bytes that [`push`] never wrote.
    pub fn decode(record: &[u8]) -> Option<Self> {
        let mut rest = record;
        let mut field = || -> Option<Option<Vec<u8>>> {
            let (length, after) = rest.split_first_chunk::<4>()?;
            rest = after;
            match u32::from_be_bytes(*length) {
                u32::MAX => Some(None),
                length => {
                    let (bytes, after) = rest.split_at_checked(length as usize)?;
                    rest = after;
                    Some(Some(bytes.to_vec()))
                }
            }
        };
        let number =
            |bytes: Vec<u8>| Some(i64::from_be_bytes(<[u8; 8]>::try_from(bytes.as_slice()).ok()?));
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).ok();
        let optional = |bytes: Option<Vec<u8>>| match bytes {
            None => Some(None),
            Some(bytes) => text(bytes).map(Some),
        };
        let mut event = Self {
            at: number(field()??)?,
            event: Event::parse(&field()??)?,
            client: Client {
                actor: field()??,
                role: field()??,
                address: optional(field()?)?,
                application: field()??,
                process: i32::try_from(number(field()??)?).ok()?,
                subject: None,
            },
            tenant: field()?,
            key_ids: field()??
                .as_chunks::<8>()
                .0
                .iter()
                .map(|id| i64::from_be_bytes(*id))
                .collect(),
            value_count: match field()? {
                None => None,
                Some(bytes) => Some(number(bytes)?),
            },
            error_code: optional(field()?)?,
            reason: field()?,
            contexts: Vec::new(),
        };
        event.client.subject = field()?;
        for _ in 0..number(field()??)? {
            event.contexts.push(field()??);
        }
        Some(event)
    }

    /// One line of JSON in ASCII, whatever the database's encoding.
    fn line(&self, remark: Option<&str>) -> String {
        let line = json!({
            "event": self.event.name(),
            "at": clock::iso_time(self.at),
            "actor": text(&self.client.actor),
            "role": text(&self.client.role),
            "client_address": self.client.address,
            "application": text(&self.client.application),
            "backend_pid": self.client.process,
            "subject": self.client.subject.as_deref().map(text),
            "tenant": self.tenant.as_deref().map(text),
            "key_ids": self.key_ids,
            "value_count": self.value_count,
            "error_code": self.error_code,
            "reason": self.reason.as_deref().map(text),
            "contexts": self.contexts.iter().map(|context| text(context)).collect::<Vec<_>>(),
            "remark": remark,
        });
        format!("fieldcrypt audit: {}", to_ascii(&line.to_string()))
    }
}

fn text(bytes: &[u8]) -> Value {
    Value::String(String::from_utf8_lossy(bytes).into_owned())
}
