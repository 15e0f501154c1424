//! Rotation of the master key: the data keys are wrapped again, one batch a transaction.
//!
//! Nothing but the rows is state: `master_keys.is_current` says where to, `master_key_fingerprint` of
//! a key whether it is there. `sql/master_key_rotation.sql` has the loop.

use fieldcrypt_envelope::{Fingerprint, KeyId};
use fieldcrypt_locked_memory::{DEEP, with_scrubbed_stack};
use pgrx::pg_sys::Datum;
use serde_json::{Value, json};

use super::create::not_loaded;
use super::{hexadecimal, with_wrapped};
use crate::error::Error;
use crate::master_key;
use crate::pg::call::{Call, sql_functions};
use crate::pg::catalog::{self, KeyRow, MasterKeysLock};
use crate::pg::spi::{self, Parameter};
use crate::pg::values::Varlena;
use crate::pg::{json, session};

sql_functions! {
    fieldcrypt_target_master_key, pg_finfo_fieldcrypt_target_master_key => target_master_key;
    fieldcrypt_lock_master_keys, pg_finfo_fieldcrypt_lock_master_keys => lock_master_keys;
    fieldcrypt_make_current, pg_finfo_fieldcrypt_make_current => make_current;
    fieldcrypt_rewrap_keys, pg_finfo_fieldcrypt_rewrap_keys => rewrap_keys;
    fieldcrypt_retire_master_keys, pg_finfo_fieldcrypt_retire_master_keys => retire_called;
}

/// The first master key of the source as it is now, whether or not a reload has reached this session.
fn target_master_key(_: &Call) -> Result<Option<Datum>, Error> {
    session::refuse_unless_writable().map_err(|_| Error::MasterKeyRotation {
        problem: "the master key can't be rotated on a standby or in a READ ONLY transaction".into(),
        hint: "CALL fieldcrypt.rotate_master_key() on the primary, with default_transaction_read_only off.",
    })?;
    Ok(Some(Varlena::of(&master_key::read_again()?.0)?.into_datum()))
}

/// Waits until nobody is making a data key, prepared transactions included, and holds that.
fn lock_master_keys(_: &Call) -> Result<Option<Datum>, Error> {
    catalog::lock_master_keys(MasterKeysLock::Switch)?;
    Ok(Some(Datum::null()))
}

/// New keys are wrapped by this master key from now on. Refused unless all that wrap keys here are
/// loaded: with the old line gone, what it wraps would stay behind.
fn make_current(call: &Call) -> Result<Option<Datum>, Error> {
    let target = fingerprint(call)?;
    session::as_owner(|| {
        spi::execute(
            "UPDATE fieldcrypt.master_keys SET is_current = false
              WHERE is_current AND fingerprint OPERATOR(pg_catalog.<>) $1",
            &[Parameter::Bytea(&target.0)],
        )?;
        spi::execute(
            "INSERT INTO fieldcrypt.master_keys (fingerprint, is_current) VALUES ($1, true)
             ON CONFLICT (fingerprint) DO UPDATE SET is_current = true, retired_at = NULL",
            &[Parameter::Bytea(&target.0)],
        )
    })?;
    retire()?;
    let loaded = master_key::fingerprints()?;
    let needed = not_loaded(&catalog::master_keys()?, &loaded);
    if needed.is_empty() {
        Ok(Some(Datum::null()))
    } else {
        Err(Error::WrongMasterKey { needed, loaded })
    }
}

fn retire_called(_: &Call) -> Result<Option<Datum>, Error> {
    retire()?;
    Ok(Some(Datum::null()))
}

/// Master keys that wrap nothing need not be loaded any more.
fn retire() -> Result<u64, Error> {
    session::as_owner(|| {
        spi::execute(
            "UPDATE fieldcrypt.master_keys AS m SET retired_at = pg_catalog.clock_timestamp()
              WHERE m.retired_at IS NULL AND NOT m.is_current
                AND NOT EXISTS (
                    SELECT FROM fieldcrypt.encryption_keys AS k
                     WHERE k.master_key_fingerprint OPERATOR(pg_catalog.=) m.fingerprint
                       AND k.wrapped_key IS NOT NULL)",
            &[],
        )
    })
}

/// Wraps the keys of these ids again, whose rows the caller has locked. Gives how many, and the ids of
/// those that did not open with the reason, as JSON.
fn rewrap_keys(call: &Call) -> Result<Option<Datum>, Error> {
    let target = fingerprint(call)?;
    let ids = call.bytes(1).ok_or(Error::NullArgument("key_ids"))?;
    // Against another run's switch to yet another master key, until the end of the transaction.
    catalog::lock_master_keys(MasterKeysLock::MakeDataKey)?;
    let is_current =
        catalog::master_keys()?.iter().any(|row| row.is_current && row.fingerprint == target);
    if !is_current {
        return Err(Error::MasterKeyRotation {
            problem: "the current master key has changed meanwhile".into(),
            hint: "Another rotate_master_key() has gone on to another one: call it again.",
        });
    }
    let mut rewrapped: Vec<Value> = Vec::new();
    let mut failures: Vec<Value> = Vec::new();
    for id in str::from_utf8(ids).unwrap_or_default().split(',') {
        let Some(key_id) = id.parse().ok().and_then(KeyId::new) else { continue };
        let Some(row) = catalog::key_by_id(key_id)? else { continue };
        if row.master_key == target || row.wrapped_key.is_none() {
            continue;
        }
        match rewrap(&row, target) {
            Ok(wrapped) => rewrapped.push(json!([id, hexadecimal(&wrapped)])),
            Err(error) if is_of_the_key(&error) => {
                failures.push(json!({ "key_id": id, "error": error.report().message() }));
            }
            Err(error) => return Err(error),
        }
    }
    if !rewrapped.is_empty() {
        store(target, &rewrapped)?;
    }
    let result = json!({ "rewrapped": rewrapped.len(), "failures": failures });
    json::to_datum(&result).map(Some)
}

fn rewrap(row: &KeyRow, target: Fingerprint) -> Result<Vec<u8>, Error> {
    with_scrubbed_stack::<DEEP, _>(|| {
        with_wrapped(row, |wrapped, metadata| {
            master_key::rewrap(row.master_key, target, wrapped, metadata, &row.check)
        })
    })
}

/// Whether the error tells of one key, so that the others can go on.
fn is_of_the_key(error: &Error) -> bool {
    matches!(
        error,
        Error::WrappedKeyNotAuthentic(_)
            | Error::WrongMasterKey { .. }
            | Error::KeyTable(_)
            | Error::NotUtf8
    )
}

/// One UPDATE a batch: each would make every plan on the table be made anew.
fn store(target: Fingerprint, rewrapped: &[Value]) -> Result<(), Error> {
    let list = json!(rewrapped).to_string();
    let touched = session::as_owner(|| {
        spi::execute(
            "UPDATE fieldcrypt.encryption_keys AS k
                SET wrapped_key = n.wrapped_key, master_key_fingerprint = $1
               FROM (SELECT (e.value OPERATOR(pg_catalog.->>) 0)::pg_catalog.int8 AS key_id,
                            pg_catalog.decode(e.value OPERATOR(pg_catalog.->>) 1, 'hex') AS wrapped_key
                       FROM pg_catalog.json_array_elements($2::pg_catalog.json) AS e
                     OFFSET 0) AS n
              WHERE k.key_id OPERATOR(pg_catalog.=) n.key_id
                AND k.wrapped_key IS NOT NULL",
            &[Parameter::Bytea(&target.0), Parameter::Text(Some(list.as_bytes()))],
        )
    })?;
    if touched == rewrapped.len() as u64 { Ok(()) } else { Err(Error::KeyChangedSinceSnapshot) }
}

fn fingerprint(call: &Call) -> Result<Fingerprint, Error> {
    call.bytes(0)
        .and_then(|bytes| bytes.try_into().ok())
        .map(Fingerprint)
        .ok_or(Error::NullArgument("target"))
}
