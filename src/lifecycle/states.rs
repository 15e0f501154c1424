//! Changes of a key's state: which are allowed (NIST SP 800-57 part 1, section 7), and what each does.
//!
//! Every change reads the key's newest row while it is alone with the tenant, so that two of them, or
//! one and a rotation, come one after the other.

use fieldcrypt_envelope::{KeyId, KeyState};

use super::create;
use crate::audit;
use crate::error::Error;
use crate::events::Event;
use crate::pg::key_table::{self, KeyRow, Purpose};
use crate::pg::spi::{self, Parameter};
use crate::pg::{clock, encoding, key_locks, security};

/// What is to become of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It no longer encrypts.
    Deactivate,
    /// Others know it.
    Compromise,
    /// It neither encrypts nor decrypts until it is resumed.
    Suspend,
    /// It is what it was before it was suspended.
    Resume,
    /// Its wrapped key is erased.
    Destroy,
}

/// The states that follow on each other: the new one, and for a suspended key the one to come back to.
/// `None` if the key is already what it is to become.
///
/// A suspended key that turns out to be compromised stays suspended and comes back as compromised.
fn next(row: &KeyRow, change: Change) -> Result<Option<(KeyState, Option<KeyState>)>, Error> {
    use KeyState::{Active, Compromised, Deactivated, Destroyed, Suspended};
    let before = row.suspended_from.unwrap_or(Deactivated);
    let purpose = row.purpose()?;
    if purpose == Purpose::Audit && matches!(change, Change::Suspend | Change::Destroy) {
        return Err(needed_to_verify(row.key_id));
    }
    Ok(Some(match (change, row.state) {
        (Change::Deactivate, Active) => (Deactivated, None),
        (Change::Compromise, Active | Deactivated) => (Compromised, None),
        (Change::Compromise, Suspended) if before != Compromised => (Suspended, Some(Compromised)),
        (Change::Compromise, Compromised | Suspended) => return Ok(None),
        (Change::Suspend, state @ (Active | Deactivated | Compromised)) => (Suspended, Some(state)),
        (Change::Resume, Suspended) if before == Active => {
            // Meanwhile the tenant may have got another active key, and it may have only one.
            let is_replaced = key_table::active_key(purpose, &row.tenant)?.is_some();
            (if is_replaced { Deactivated } else { Active }, None)
        }
        (Change::Resume, Suspended) => (before, None),
        (Change::Destroy, Deactivated | Suspended | Compromised) => (Destroyed, None),
        (change, state) => return Err(wrong(row.key_id, state, change)),
    }))
}

/// Suspends a key.
pub fn suspend(key_id: KeyId, reason: &[u8]) -> Result<(), Error> {
    with_key(key_id, |row| change(row, Change::Suspend, Some(reason)).map(drop))
}

/// Resumes a suspended key, and says what it is now.
pub fn resume(key_id: KeyId, reason: &[u8]) -> Result<KeyState, Error> {
    with_key(key_id, |row| change(row, Change::Resume, Some(reason)))
}

/// Marks a key as compromised; the tenant's next version is made if it was the active one. Gives the
/// tenant's active key.
pub fn mark_compromised(key_id: KeyId, reason: &[u8]) -> Result<Option<KeyId>, Error> {
    with_key(key_id, |row| {
        change(row, Change::Compromise, Some(reason))?;
        let purpose = row.purpose()?;
        if row.state == KeyState::Active {
            return create::next_version(purpose, &row.tenant, Some(reason)).map(Some);
        }
        Ok(key_table::active_key(purpose, &row.tenant)?.map(|active| active.key_id))
    })
}

/// Brings a key into a state that is no more permissive than its own.
pub fn set_state(key_id: KeyId, state: KeyState, reason: Option<&[u8]>) -> Result<(), Error> {
    with_key(key_id, |row| {
        let wanted = match state {
            KeyState::Active => {
                return Err(Error::WrongState {
                    problem: format!("encryption key {key_id} can't be made active"),
                    hint: "A new active key is made by rotate_keys; a suspended one comes back by resume_key.",
                });
            }
            KeyState::Deactivated => Change::Deactivate,
            KeyState::Suspended => Change::Suspend,
            KeyState::Compromised => Change::Compromise,
            KeyState::Destroyed => Change::Destroy,
        };
        change(row, wanted, reason).map(drop)
    })
}

/// Schedules the destruction of a key that no longer encrypts.
///
/// Not in the transaction that stopped it: until that commits others encrypt with the key, and what
/// they write would have to be waited for from then on, not from now.
pub fn schedule_destruction(
    key_id: KeyId,
    seconds: i64,
    reason: Option<&[u8]>,
) -> Result<(), Error> {
    with_key(key_id, |row| {
        if next(row, Change::Destroy)?.is_none() || row.destroy_after.is_some() {
            return Err(Error::WrongState {
                problem: format!("the destruction of encryption key {key_id} is scheduled already"),
                hint: "To change the date: SELECT fieldcrypt.cancel_destroy_key(key_id, reason), then schedule it anew.",
            });
        }
        if row.uncommitted {
            return Err(Error::WrongState {
                problem: format!("encryption key {key_id} was changed in this transaction"),
                hint: "Other sessions may still encrypt with it: COMMIT first, then have it destroyed.",
            });
        }
        // A key that is to be destroyed never encrypts again, also if it is resumed meanwhile.
        let from = row.suspended_from.map(|state| match state {
            KeyState::Active => KeyState::Deactivated,
            state => state,
        });
        update(
            "UPDATE fieldcrypt.encryption_keys
                SET suspended_from = $3,
                    destroy_scheduled_at = pg_catalog.clock_timestamp(),
                    destroy_after = pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+)
                        pg_catalog.make_interval(secs => $2::pg_catalog.float8),
                    destroy_horizon = NULL
              WHERE key_id OPERATOR(pg_catalog.=) $1",
            &[
                Parameter::BigInt(Some(key_id.as_i64())),
                Parameter::BigInt(Some(seconds)),
                Parameter::Text(from.map(|state| state.name().as_bytes())),
            ],
        )?;
        audit::record_key(Event::KeyDestructionScheduled, &row.tenant, key_id, reason)
    })
}

/// Takes the schedule back.
pub fn cancel_destruction(key_id: KeyId, reason: &[u8]) -> Result<(), Error> {
    with_key(key_id, |row| {
        refuse_unless_to_be_destroyed(row)?;
        update(
            "UPDATE fieldcrypt.encryption_keys
                SET destroy_scheduled_at = NULL, destroy_after = NULL, destroy_horizon = NULL
              WHERE key_id OPERATOR(pg_catalog.=) $1",
            &[Parameter::BigInt(Some(key_id.as_i64()))],
        )?;
        audit::record_key(Event::KeyDestructionCancelled, &row.tenant, key_id, Some(reason))
    })
}

/// Notes the transaction id below which prepared transactions may hold values of the key.
pub fn set_destroy_horizon(key_id: KeyId, horizon: &[u8]) -> Result<(), Error> {
    with_key(key_id, |row| {
        refuse_unless_to_be_destroyed(row)?;
        update(
            "UPDATE fieldcrypt.encryption_keys SET destroy_horizon = $2::pg_catalog.xid8
              WHERE key_id OPERATOR(pg_catalog.=) $1",
            &[Parameter::BigInt(Some(key_id.as_i64())), Parameter::Text(Some(horizon))],
        )
    })
}

/// Erases a key whose destruction is due. That nothing uses it is the caller's to know.
pub fn erase(key_id: KeyId, reason: Option<&[u8]>) -> Result<(), Error> {
    with_key(key_id, |row| {
        refuse_unless_to_be_destroyed(row)?;
        if row.destroy_after.is_some_and(|after| after > clock::now()) {
            return Err(Error::WrongState {
                problem: format!("the destruction of encryption key {key_id} is not due yet"),
                hint: "It was cancelled and scheduled anew.",
            });
        }
        change(row, Change::Destroy, reason).map(drop)
    })
}

/// Destroys all keys of a tenant, the active one too; gives their number. No new one is made by mere
/// encryption: a tenant that has had keys gets another only by rotation with force.
pub fn shred(tenant: &[u8], reason: &[u8]) -> Result<u64, Error> {
    key_locks::alone_with_tenant(Purpose::Field, tenant, || {
        let keys = key_table::keys_of_tenant(Purpose::Field, tenant)?;
        let alive: Vec<&KeyRow> =
            keys.iter().filter(|row| row.state != KeyState::Destroyed).collect();
        if alive.is_empty() {
            let name = encoding::lossy(tenant);
            return Err(Error::WrongState {
                problem: if keys.is_empty() {
                    format!("tenant \"{name}\" has no encryption key")
                } else {
                    format!("all encryption keys of tenant \"{name}\" are destroyed already")
                },
                hint: "SELECT tenant, version, state FROM fieldcrypt.encryption_keys shows all.",
            });
        }
        for row in &alive {
            write_state(row, KeyState::Destroyed, None)?;
            audit::record_key(Event::KeyDestroyed, tenant, row.key_id, Some(reason))?;
        }
        audit::record_tenant(Event::TenantShredded, tenant, Some(reason))?;
        Ok(alive.len() as u64)
    })
}

/// Changes the state of a key as [`next`] allows, records it, and gives the new state. The caller is
/// alone with the tenant.
pub fn change(row: &KeyRow, change: Change, reason: Option<&[u8]>) -> Result<KeyState, Error> {
    let Some((state, suspended_from)) = next(row, change)? else { return Ok(row.state) };
    write_state(row, state, suspended_from)?;
    let event = match change {
        Change::Deactivate => Event::KeyDeactivated,
        Change::Compromise => Event::KeyCompromised,
        Change::Suspend => Event::KeySuspended,
        Change::Resume => Event::KeyResumed,
        Change::Destroy => Event::KeyDestroyed,
    };
    audit::record_key(event, &row.tenant, row.key_id, reason)?;
    Ok(state)
}

fn write_state(
    row: &KeyRow,
    state: KeyState,
    suspended_from: Option<KeyState>,
) -> Result<(), Error> {
    let key_id = Parameter::BigInt(Some(row.key_id.as_i64()));
    if state == KeyState::Destroyed {
        return update(
            "UPDATE fieldcrypt.encryption_keys
                SET state = 'destroyed', wrapped_key = NULL, suspended_from = NULL,
                    deactivated_at = COALESCE(deactivated_at, pg_catalog.clock_timestamp()),
                    destroyed_at = pg_catalog.clock_timestamp()
              WHERE key_id OPERATOR(pg_catalog.=) $1",
            &[key_id],
        );
    }
    // A suspended key may come back to encrypt: when it stopped for good is not known yet.
    let stops = matches!(state, KeyState::Deactivated | KeyState::Compromised);
    update(
        "UPDATE fieldcrypt.encryption_keys
            SET state = $2, suspended_from = $3,
                deactivated_at = CASE WHEN $4 OPERATOR(pg_catalog.=) 1
                    THEN COALESCE(deactivated_at, pg_catalog.clock_timestamp())
                    ELSE deactivated_at END
          WHERE key_id OPERATOR(pg_catalog.=) $1",
        &[
            key_id,
            Parameter::Text(Some(state.name().as_bytes())),
            Parameter::Text(suspended_from.map(|state| state.name().as_bytes())),
            Parameter::Integer(i32::from(stops)),
        ],
    )
}

fn update(statement: &'static str, parameters: &[Parameter<'_>]) -> Result<(), Error> {
    let touched = security::as_owner(|| spi::execute(statement, parameters))?;
    // The look-up saw the newest row; this transaction's own snapshot may be older.
    if touched == 1 { Ok(()) } else { Err(Error::KeyChangedSinceSnapshot) }
}

/// Calls `work` with a key's newest row, alone with its tenant.
fn with_key<R>(key_id: KeyId, work: impl FnOnce(&KeyRow) -> Result<R, Error>) -> Result<R, Error> {
    let find = || key_table::key_by_id(key_id)?.ok_or(Error::UnknownKey(key_id));
    let row = find()?;
    key_locks::alone_with_tenant(row.purpose()?, &row.tenant, || work(&find()?))
}

fn refuse_unless_to_be_destroyed(row: &KeyRow) -> Result<(), Error> {
    if row.destroy_after.is_some() && row.state != KeyState::Destroyed {
        return Ok(());
    }
    Err(Error::WrongState {
        problem: format!(
            "encryption key {} is {}, and not scheduled for destruction",
            row.key_id,
            row.state.name()
        ),
        hint: "CALL fieldcrypt.destroy_key(key_id) schedules the destruction of a key.",
    })
}

/// Rows of the audit log are checked for years after their key was replaced.
fn needed_to_verify(key_id: KeyId) -> Error {
    Error::WrongState {
        problem: format!(
            "encryption key {key_id} authenticates the audit log: it can't be suspended or destroyed"
        ),
        hint: "Rows of the log could not be checked any more. If others may know it: SELECT fieldcrypt.mark_compromised(key_id, reason) makes the next version.",
    }
}

fn wrong(key_id: KeyId, state: KeyState, change: Change) -> Error {
    let wanted = match change {
        Change::Deactivate => "deactivated",
        Change::Compromise => "marked as compromised",
        Change::Suspend => "suspended",
        Change::Resume => "resumed",
        Change::Destroy => "destroyed",
    };
    Error::WrongState {
        problem: format!("encryption key {key_id} is {}: it can't be {wanted}", state.name()),
        hint: match (change, state) {
            (_, KeyState::Destroyed) => "A destroyed key stays so: its wrapped key is erased.",
            (Change::Destroy, _) => {
                "Replace the active key first, CALL fieldcrypt.rotate_keys(tenant), and re-encrypt its values. To destroy a tenant's data: CALL fieldcrypt.shred_tenant(tenant, reason)."
            }
            (Change::Resume, _) => "Only a suspended key is resumed.",
            (Change::Suspend, _) => "SELECT fieldcrypt.resume_key(key_id, reason) ends that.",
            _ => "Only an active key is deactivated.",
        },
    }
}
