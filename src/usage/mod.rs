//! Who used which keys: counted where a key is used, told once a client's statement.
//!
//! Counts are kept in the cache of keys. At the end of the statement they go to the statistics, and with
//! `fieldcrypt.audit_decrypt = statements` as one event a tenant to the audit log. A statement that fails
//! does not come to its end: then the callbacks of its transaction tell, for which everything that needs
//! catalogs is looked up when the statement first uses a key.

mod contexts;
mod failures;
mod keys;
mod settings;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use fieldcrypt_envelope::KeyId;

pub use failures::decrypt_failed;

use crate::error::Error;
use crate::events::{self, Event, Surviving};
use crate::keyring::{self, Tally, UseListener};
use crate::pg::callbacks::{self, Listener};
use crate::pg::client::{self, Client};
use crate::pg::statistics_memory::{self, Counters};
use crate::pg::{clock, executor, roles};
use contexts::Contexts;
use keys::Keys;
use settings::AuditDecrypt;

/// Tenants and errors of one statement after which its failures are told before it ends.
const FAILURES_KEPT: usize = 1000;
/// Keys from which on tenants are told apart by a hash table.
const FEW: usize = 8;

/// Whether there is anything to tell. Static, since every statement of the session asks.
static IS_OPEN: AtomicBool = AtomicBool::new(false);
/// As of which subject of the session the statement's client is known; 0: it is not.
static CLIENT_OF: AtomicUsize = AtomicUsize::new(0);
/// And as of which roles.
static ROLES_OF: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static STATEMENT: RefCell<Statement> = RefCell::new(Statement::default());
}

/// What is to be told of a statement.
#[derive(Default)]
struct Statement {
    /// When the client's statement began that the counts are of.
    began: i64,
    client: Option<Rc<Client>>,
    failures: Vec<Failures>,
    refusals: Vec<(Option<Rc<[u8]>>, u64)>,
    keys_made: Vec<Rc<[u8]>>,
    contexts: Contexts,
    events: VecDeque<Pending>,
}

/// Failures that gave NULL, of one kind.
struct Failures {
    error_code: String,
    reason: String,
    tenant: Option<Rc<[u8]>>,
    keys: Keys,
    count: u64,
}

struct Pending {
    event: Event,
    tenant: Option<Rc<[u8]>>,
    keys: Keys,
    count: u64,
    error_code: Option<String>,
    reason: Option<String>,
    contexts: Vec<Vec<u8>>,
    client: Rc<Client>,
}

/// Defines the settings, asks for shared memory, hooks into the executor and is told of the use of keys. At the
/// end of a transaction it tells before the keys are gone: the keyring listens after it.
pub fn init() {
    settings::init();
    statistics_memory::init(settings::stats_max());
    executor::init(executor::Listener { begins: statement_begins, ends: statement_ends });
    callbacks::listen(Listener {
        before_commit: statement_ends,
        committed: transaction_ends,
        gone: transaction_ends,
        sub_gone: |_| {
            // A statement that failed in a savepoint, not in a block with EXCEPTION inside of it.
            if executor::is_between_statements() {
                transaction_ends();
            }
        },
        ended: contexts::transaction_ended,
        ..Listener::DEAF
    });
    keyring::on_use(UseListener { first_use: note_first_use, is_much: tell_early });
}

/// A key is used that no other use since the last telling was counted for.
fn note_first_use() {
    if !IS_OPEN.load(Ordering::Relaxed) {
        open();
    }
}

fn open() {
    IS_OPEN.store(true, Ordering::Relaxed);
    with_statement(|statement| statement.began = clock::statement_start());
}

/// Calls `work` with what is to be told. A callback may come while it is in use only if the backend is going
/// down: then nothing is done.
fn with_statement<R>(work: impl FnOnce(&mut Statement) -> R) -> Option<R> {
    STATEMENT.try_with(|place| place.try_borrow_mut().ok().map(|mut it| work(&mut it))).ok()?
}

/// How a decryption is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// Not at all.
    Not,
    /// With the others of its statement.
    InStatement,
    /// And its context, too.
    WithContext,
    /// On its own.
    Alone,
}

impl Record {
    /// Whether it is counted with the others of its statement.
    #[inline]
    pub fn is_of_statement(self) -> bool {
        matches!(self, Self::InStatement | Self::WithContext)
    }

    /// Whether more is to be told than that number.
    #[inline]
    pub fn tells_more(self) -> bool {
        matches!(self, Self::WithContext | Self::Alone)
    }
}

/// How a decryption that is about to happen is recorded. Reads catalogs the first time in a statement.
#[inline]
pub fn before_decryption() -> Result<Record, Error> {
    Ok(match settings::audit_decrypt() {
        AuditDecrypt::Off | AuditDecrypt::Failures => Record::Not,
        AuditDecrypt::Statements => {
            if !is_client_known() {
                client()?;
            }
            if settings::contexts() > 0 { Record::WithContext } else { Record::InStatement }
        }
        AuditDecrypt::All => Record::Alone,
    })
}

/// Records what is to be told of one decryption besides its number.
pub fn record_more(
    record: Record,
    tenant: Rc<[u8]>,
    key_id: KeyId,
    context: &[u8],
) -> Result<(), Error> {
    if record == Record::Alone {
        return record_call(&tenant, key_id, context);
    }
    let is_much = STATEMENT.with_borrow_mut(|statement| statement.contexts.add(tenant, context))?;
    if is_much { tell_early() } else { Ok(()) }
}

fn record_call(tenant: &[u8], key_id: KeyId, context: &[u8]) -> Result<(), Error> {
    let contexts = match settings::contexts() {
        0 => Vec::new(),
        _ => vec![contexts::name_of(context)?],
    };
    events::push(
        Event::ValuesDecrypted,
        &Surviving {
            tenant: Some(tenant),
            key_ids: &[key_id.as_i64()],
            value_count: Some(1),
            contexts: &contexts,
            ..Surviving::default()
        },
    )
}

/// A decryption failed and gave NULL. The statement's failures of a kind are recorded together.
pub fn note_null(error: &Error, key_id: Option<KeyId>) -> Result<(), Error> {
    let tenant: Option<Rc<[u8]>> = key_id.and_then(|key_id| {
        keyring::cached_tenant(key_id).or_else(|| keyring::tenant_of_key(key_id).map(Rc::from))
    });
    count_failure(tenant.clone());
    if !records_failures() {
        return Ok(());
    }
    client()?;
    let report = error.report();
    let error_code = report.sqlstate.as_str();
    let is_much = STATEMENT.with_borrow_mut(|statement| {
        let failures = &mut statement.failures;
        let known = failures
            .iter_mut()
            .rev()
            .find(|known| known.error_code == error_code && known.tenant == tenant);
        let known = match known {
            Some(known) => known,
            None => {
                let reason = format!("try_decrypt_field gave NULL: {}", report.message);
                failures.push(Failures {
                    error_code: error_code.to_owned(),
                    reason,
                    tenant,
                    keys: Keys::default(),
                    count: 0,
                });
                let Some(last) = failures.last_mut() else { return false };
                last
            }
        };
        known.count += 1;
        if let Some(key_id) = key_id {
            known.keys.add(key_id);
        }
        failures.len() >= FAILURES_KEPT
    });
    if is_much { tell_early() } else { Ok(()) }
}

/// Whether failed decryptions are recorded.
fn records_failures() -> bool {
    settings::audit_decrypt() != AuditDecrypt::Off
}

/// A decryption failed with an error, which is recorded where it is raised: here it is counted.
fn note_failure(tenant: Option<&[u8]>) {
    count_failure(tenant.map(Rc::from));
}

fn count_failure(tenant: Option<Rc<[u8]>>) {
    note_first_use();
    STATEMENT.with_borrow_mut(|statement| {
        let refusals = &mut statement.refusals;
        let is_room = refusals.len() < FAILURES_KEPT;
        match refusals.iter_mut().rev().take(FEW).find(|known| known.0 == tenant) {
            Some(known) => known.1 += 1,
            None if is_room => refusals.push((tenant, 1)),
            None => statistics_memory::add(
                tenant.as_deref(),
                &Counters { failures: 1, ..Counters::default() },
            ),
        }
    });
}

/// A key was made for a tenant.
pub fn note_key_made(tenant: &[u8]) {
    note_first_use();
    STATEMENT.with_borrow_mut(|statement| statement.keys_made.push(tenant.into()));
}

/// The client's statement begins: what the last one left is told. It is left where the executor does
/// not come to its end: by a cursor of the protocol, by a call that is no statement.
fn statement_begins() -> Result<(), Error> {
    if IS_OPEN.load(Ordering::Relaxed)
        && STATEMENT.with_borrow(|statement| statement.began != clock::statement_start())
    {
        return statement_ends();
    }
    Ok(())
}

/// The client's statement, or its transaction, ends: tells what was counted. What finds no room in the
/// audit queue may be an error; what is left then is told when the transaction aborts.
fn statement_ends() -> Result<(), Error> {
    if !IS_OPEN.load(Ordering::Relaxed) {
        return Ok(());
    }
    gather();
    push_events()?;
    close();
    Ok(())
}

/// The same where nothing may fail. What finds no room is in the server log.
fn transaction_ends() {
    if !IS_OPEN.load(Ordering::Relaxed) {
        return;
    }
    gather();
    while let Some(event) = next_event() {
        let _ = events::push(event.event, &event.surviving());
    }
    close();
}

/// Tells what was counted while the statement goes on, so that it takes no more memory.
fn tell_early() -> Result<(), Error> {
    gather();
    push_events()
}

fn close() {
    IS_OPEN.store(false, Ordering::Relaxed);
    CLIENT_OF.store(0, Ordering::Relaxed);
    with_statement(|statement| statement.client = None);
}

fn push_events() -> Result<(), Error> {
    while let Some(event) = next_event() {
        events::push(event.event, &event.surviving())?;
    }
    Ok(())
}

fn next_event() -> Option<Pending> {
    with_statement(|statement| statement.events.pop_front())?
}

/// Whether the client is the one that the statement's was resolved of.
#[inline]
fn is_client_known() -> bool {
    CLIENT_OF.load(Ordering::Relaxed) == client::subjects()
        && ROLES_OF.load(Ordering::Relaxed) == roles::session_number()
}

/// The client of the statement, resolved once, and again when it acts for another subject or as another role: what
/// was counted until then is told of the one before.
fn client() -> Result<(), Error> {
    if is_client_known() {
        return Ok(());
    }
    let (subjects, roles) = (client::subjects(), roles::session_number());
    let client = Client::now();
    let is_other = |known: &Rc<Client>| {
        (&known.subject, &known.actor, &known.role)
            != (&client.subject, &client.actor, &client.role)
    };
    if STATEMENT.with_borrow(|statement| statement.client.as_ref().is_some_and(is_other)) {
        gather();
        // Who changes it all the time takes no more memory.
        if STATEMENT.with_borrow(|statement| statement.events.len() >= FAILURES_KEPT) {
            push_events()?;
        }
    }
    STATEMENT.with_borrow_mut(|statement| statement.client = Some(Rc::new(client)));
    note_first_use();
    CLIENT_OF.store(subjects, Ordering::Relaxed);
    ROLES_OF.store(roles, Ordering::Relaxed);
    Ok(())
}

/// What one tenant's keys were used for.
struct TenantUse {
    tenant: Rc<[u8]>,
    tally: Tally,
    keys: Keys,
}

/// Takes the counts from the cache of keys: adds them to the statistics, and makes events of what is to
/// be recorded.
fn gather() {
    let uses = by_tenant();
    for used in &uses {
        statistics_memory::add(Some(&used.tenant), &counters_of(&used.tally));
    }
    with_statement(|statement| statement.take(uses));
}

/// What a statement did with a tenant's keys.
fn counters_of(tally: &Tally) -> Counters {
    Counters {
        encrypt_statements: u64::from(tally.encrypted > 0),
        encrypt_values: tally.encrypted,
        encrypt_bytes: tally.encrypted_bytes,
        encrypt_time: tally.encrypt_time,
        decrypt_statements: u64::from(tally.decrypted > 0),
        decrypt_values: tally.decrypted,
        decrypt_bytes: tally.decrypted_bytes,
        decrypt_time: tally.decrypt_time,
        reencrypt_values: tally.reencrypted,
        failures: 0,
        cache_hits: tally.look_ups.saturating_sub(tally.misses),
        cache_misses: tally.misses,
        load_time: tally.load_time,
        keys_made: 0,
    }
}

fn by_tenant() -> Vec<TenantUse> {
    let mut uses: Vec<TenantUse> = Vec::new();
    let mut places: HashMap<Rc<[u8]>, usize> = HashMap::new();
    keyring::take_use(&mut |tenant, key_id, tally| {
        let known = if places.is_empty() {
            uses.iter().position(|used| used.tenant == *tenant)
        } else {
            places.get(tenant).copied()
        };
        let place = known.unwrap_or(uses.len());
        if known.is_none() {
            let (tally, keys) = (Tally::default(), Keys::default());
            uses.push(TenantUse { tenant: Rc::clone(tenant), tally, keys });
            if uses.len() == FEW {
                let all = uses.iter().enumerate();
                places = all.map(|(place, used)| (Rc::clone(&used.tenant), place)).collect();
            } else if uses.len() > FEW {
                places.insert(Rc::clone(tenant), place);
            }
        }
        if let Some(used) = uses.get_mut(place) {
            used.tally.add(tally);
            if tally.recorded > 0 {
                used.keys.add(key_id);
            }
        }
    });
    uses
}

impl Statement {
    fn take(&mut self, uses: Vec<TenantUse>) {
        for (tenant, failures) in self.refusals.drain(..) {
            let counters = Counters { failures, ..Counters::default() };
            statistics_memory::add(tenant.as_deref(), &counters);
        }
        for tenant in self.keys_made.drain(..) {
            let counters = Counters { keys_made: 1, ..Counters::default() };
            statistics_memory::add(Some(&tenant), &counters);
        }
        // Nothing is recorded before its client is known.
        let client = || self.client.clone().unwrap_or_else(|| Rc::new(Client::unknown()));
        let recorded = uses.into_iter().filter(|used| used.tally.recorded > 0);
        for used in recorded {
            let rows = self.contexts.take(&used.tenant);
            let named: u64 = rows.iter().map(|row| row.values).sum();
            let rest = used.tally.recorded.saturating_sub(named);
            let limit = settings::contexts();
            let mut pending = |count, contexts, words: Option<String>| {
                let words = [words, used.keys.in_words()].into_iter().flatten();
                let reason = words.collect::<Vec<_>>().join("; ");
                self.events.push_back(Pending {
                    event: Event::ValuesDecrypted,
                    tenant: Some(Rc::clone(&used.tenant)),
                    count,
                    error_code: None,
                    reason: (!reason.is_empty()).then_some(reason),
                    keys: used.keys.clone(),
                    contexts,
                    client: client(),
                });
            };
            for row in rows {
                pending(row.values, row.contexts, None);
            }
            if rest > 0 {
                let words = (limit > 0).then(|| {
                    format!("the contexts of these values are not named: fieldcrypt.audit_decrypt_contexts is {limit}")
                });
                pending(rest, Vec::new(), words);
            }
        }
        self.contexts = Contexts::default();
        let failures = std::mem::take(&mut self.failures);
        self.events.extend(failures.into_iter().map(|failed| Pending {
            event: Event::DecryptFailed,
            tenant: failed.tenant,
            count: failed.count,
            error_code: Some(failed.error_code),
            reason: Some(failed.reason),
            keys: failed.keys,
            contexts: Vec::new(),
            client: client(),
        }));
    }
}

impl Pending {
    fn surviving(&self) -> Surviving<'_> {
        Surviving {
            tenant: self.tenant.as_deref(),
            key_ids: &self.keys.named,
            value_count: i64::try_from(self.count).ok(),
            error_code: self.error_code.as_deref(),
            reason: self.reason.as_deref().map(str::as_bytes),
            client: Some(&self.client),
            contexts: &self.contexts,
        }
    }
}
