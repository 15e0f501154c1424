//! The key that authenticates new rows of the log: made on first use, and recorded in the log itself.

use std::cell::Cell;
use std::thread;
use std::time::Duration;

use fieldcrypt_envelope::{KeyId, KeyState};
use pgrx::pg_sys::TransactionId;

use crate::error::Error;
use crate::events::Event;
use crate::keyring::{self, AUDIT_TENANT};
use crate::master_key;
use crate::pg::key_locks::{self, Alone};
use crate::pg::key_table::{self, KeyRow, Purpose};
use crate::pg::{clock, setting, transaction};

thread_local! {
    static FAILURE: Cell<Option<Failure>> = const { Cell::new(None) };
    static WAITED_FOR: Cell<Option<TransactionId>> = const { Cell::new(None) };
}

/// The key for new rows of the log, which is made if the database has keys and never had one for this.
/// `None` where it can't be had: rows are written unauthenticated then, since nothing that is to be
/// recorded may fail for want of it.
pub fn active() -> Option<KeyId> {
    let (cached, generation) = keyring::cached_audit_key();
    if cached.is_some() {
        return cached;
    }
    if FAILURE.get().is_some_and(Failure::lasts) {
        return None;
    }
    match find_active(generation) {
        Ok(found) => {
            FAILURE.set(None);
            found
        }
        Err(_) => {
            FAILURE.set(Some(Failure::now()));
            None
        }
    }
}

/// Why there is no key for the time being, so that a master key that can't be had is not asked for row
/// by row: its source may be a command.
#[derive(Clone, Copy)]
struct Failure {
    at: i64,
    configuration_time: i64,
    master_keys: (u64, bool),
}

impl Failure {
    const PAUSE: i64 = 10_000_000;

    fn now() -> Self {
        Self {
            at: clock::now(),
            configuration_time: setting::configuration_time(),
            master_keys: (master_key::epoch(), master_key::is_loaded()),
        }
    }

    fn lasts(self) -> bool {
        self.configuration_time == setting::configuration_time()
            && self.master_keys == (master_key::epoch(), master_key::is_loaded())
            && clock::now().saturating_sub(self.at) < Self::PAUSE
    }
}

fn find_active(generation: u64) -> Result<Option<KeyId>, Error> {
    loop {
        let row = match key_table::active_key(Purpose::Audit, AUDIT_TENANT)? {
            Some(row) => row,
            None => match first()? {
                First::Made(row) => row,
                First::NotNow => return Ok(None),
                First::InFlight(transaction) if waited_for(transaction) => continue,
                First::InFlight(_) => return Ok(None),
            },
        };
        keyring::adopt_audit_key(&row, generation)?;
        return Ok(Some(row.key_id));
    }
}

/// Waits a moment for a transaction that makes the first key. Not longer, since what is recorded here has
/// nothing to do with it, and not twice for the same one: it may last for hours, or be prepared.
fn waited_for(transaction: TransactionId) -> bool {
    if WAITED_FOR.get() == Some(transaction) {
        return !transaction::is_in_progress(transaction);
    }
    for _ in 0..200 {
        if !transaction::is_in_progress(transaction) {
            return true;
        }
        transaction::check_for_interrupts();
        thread::sleep(Duration::from_millis(5));
    }
    WAITED_FOR.set(Some(transaction));
    false
}

/// What came of an attempt to make the first key for the audit log.
enum First {
    /// It is there.
    Made(KeyRow),
    /// This database needs none yet, or must not have another.
    NotNow,
    /// This transaction, which has not ended, has made one.
    InFlight(TransactionId),
}

/// Makes the first key that authenticates rows of the audit log, in a database that has other keys. One
/// without keys may be about to receive those of a dump, and nothing is restored over keys.
fn first() -> Result<First, Error> {
    transaction::refuse_unless_writable()?;
    if !key_table::has_keys()? {
        return Ok(First::NotNow);
    }
    let mut work = Some(|| {
        if let Some(row) = key_table::active_key(Purpose::Audit, AUDIT_TENANT)? {
            return Ok(First::Made(row));
        }
        // In the middle of a rotation the last one goes on.
        let versions = key_table::keys_of_tenant(Purpose::Audit, AUDIT_TENANT)?;
        if !versions.is_empty() {
            let usable = versions.into_iter().filter(|row| row.state == KeyState::Deactivated);
            let last = usable.max_by_key(|row| row.version);
            return Ok(last.map_or(First::NotNow, First::Made));
        }
        let key_id = keyring::make(Purpose::Audit, AUDIT_TENANT, 1)?;
        super::record_key(Event::KeyCreated, AUDIT_TENANT, key_id, None)?;
        keyring::written(key_id).map(First::Made)
    });
    Ok(match key_locks::alone_unless_in_flight(Purpose::Audit, AUDIT_TENANT, &mut work)? {
        Alone::Done(outcome) => outcome,
        Alone::InFlight(transaction) => First::InFlight(transaction),
    })
}
