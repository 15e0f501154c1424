//! Exports of the key table, and keys that come back from one.
//!
//! SQL reads and writes the tables (`sql/key_backup.sql`); here documents are authenticated, and wrapped
//! keys opened.

use fieldcrypt_envelope::key_export::{Contents, KeyEntry, SealedExport};
use fieldcrypt_envelope::{Fingerprint, KeyId, KeyState};
use fieldcrypt_locked_memory::{DEEP, with_scrubbed_stack};
use serde_json::Value;

use crate::error::Error;
use crate::keyring::{self, guard};
use crate::master_key;
use crate::pg::key_table::{self, Purpose};
use crate::pg::spi::{self, Parameter};
use crate::pg::{encoding, reserve, security, transaction};

/// The document of these contents, authenticated by every master key that wraps one of its keys.
pub fn seal(contents: &[u8]) -> Result<String, Error> {
    let contents = Contents::parse(&document(contents)?).map_err(|problem| {
        Error::KeyTable(format!("the keys of this database can't be exported: {problem}"))
    })?;
    let mut authenticating = contents.authenticating_master_keys();
    if authenticating.is_empty() {
        // No keys yet: any master key will do.
        authenticating = master_key::fingerprints()?.first().copied().into_iter().collect();
    }
    refuse_unless_loaded(&authenticating, |needed, loaded| Error::WrongMasterKey {
        needed,
        loaded,
    })?;
    let authentication = authenticating
        .into_iter()
        .map(|one| master_key::with_export_key(one, |key| contents.authenticate(key)))
        .collect::<Result<Vec<_>, _>>()?;
    contents
        .seal(authentication)
        .ok_or_else(|| Error::Internal("an export lacks an authentication".into()))
}

/// What an authentic document says. No key of it is opened.
pub fn read(document: &[u8]) -> Result<String, Error> {
    Ok(authentic(&self::document(document)?)?.to_json())
}

/// Takes the keys of a document over, all or none, and gives the counts as JSON.
pub fn import(document: &[u8], apply_states: bool, renumber: bool) -> Result<String, Error> {
    transaction::refuse_unless_writable()?;
    let contents = authentic(&self::document(document)?)?;
    refuse_unless_loaded(&contents.authenticating_master_keys(), not_loaded)?;
    for key in contents.keys() {
        transaction::check_for_interrupts();
        refuse_unless_it_opens(key)?;
    }
    let flag = |is_set| Parameter::Integer(i32::from(is_set));
    let json = contents.to_json();
    let outcome = security::as_owner(|| {
        spi::text(
            "SELECT fieldcrypt_internal.import_contents($1::pg_catalog.json, $2, $3)::pg_catalog.text",
            &[Parameter::Text(Some(json.as_bytes())), flag(apply_states), flag(renumber)],
        )
    })?;
    let outcome = outcome.unwrap_or_default();
    refuse_if_refused(&outcome)?;
    // Keys are here: what pg_restore would bring from now on would be over them.
    guard::end_restore();
    Ok(outcome)
}

/// A document, if there is room for what is made of it: its keys, and their JSON.
fn document(text: &[u8]) -> Result<String, Error> {
    reserve::room(text.len().saturating_mul(6), "a key export")?;
    encoding::to_string(text)
}

/// Raises what `import_contents` gives back instead of counts, which takes back what it did.
fn refuse_if_refused(outcome: &str) -> Result<(), Error> {
    let outcome: Value = serde_json::from_str(outcome)
        .map_err(|_| Error::Internal("an import has no outcome".into()))?;
    let text = |name: &str| outcome[name].as_str().map(str::to_owned);
    if text("isolation").is_some() {
        return Err(Error::NeedsReadCommitted);
    }
    match text("conflict") {
        Some(problem) => {
            Err(Error::KeyImportConflict { problem, hint: text("hint").unwrap_or_default() })
        }
        None => Ok(()),
    }
}

/// Why a key can't be used by this session; `None` if it can or is destroyed.
pub fn problem_of(key_id: Option<KeyId>) -> Result<Option<String>, Error> {
    let outcome =
        key_id.ok_or_else(|| Error::KeyTable("a key id is not positive".into())).and_then(opens);
    match outcome {
        Ok(()) => Ok(None),
        // What Postgres raised is no finding about the key, nor that there is no master key at all.
        Err(
            error @ (Error::Postgres(_)
            | Error::NoMasterKey
            | Error::MasterKeySource { .. }
            | Error::OutOfMemory { .. }),
        ) => Err(error),
        Err(error) => Ok(Some(error.report().message)),
    }
}

/// Gives a key another version. Its wrapping authenticates the version, so it is wrapped again.
pub fn renumber(key_id: KeyId, version: i32) -> Result<(), Error> {
    let row = key_table::key_by_id(key_id)?.ok_or(Error::UnknownKey(key_id))?;
    let wrapped = with_scrubbed_stack::<DEEP, _>(|| {
        let data_key = keyring::unwrap_key(&row)?;
        keyring::with_metadata(row.purpose()?, key_id, &row.tenant, version, |metadata| {
            master_key::wrap_key(row.master_key, &data_key, metadata)
        })
    })?;
    security::as_owner(|| {
        spi::execute(
            "UPDATE fieldcrypt.encryption_keys SET version = $2, wrapped_key = $3
              WHERE key_id OPERATOR(pg_catalog.=) $1",
            &[
                Parameter::BigInt(Some(key_id.as_i64())),
                Parameter::Integer(version),
                Parameter::Bytea(&wrapped),
            ],
        )
    })?;
    Ok(())
}

fn opens(key_id: KeyId) -> Result<(), Error> {
    let row = key_table::key_by_id(key_id)?.ok_or(Error::UnknownKey(key_id))?;
    if row.state == KeyState::Destroyed {
        return Ok(());
    }
    let check =
        with_scrubbed_stack::<DEEP, _>(|| keyring::unwrap_key(&row).map(|key| key.check(key_id)))?;
    if check == row.check { Ok(()) } else { Err(Error::WrappedKeyNotAuthentic(key_id)) }
}

/// What a document says, if at least one of its master keys is loaded, and all that are vouch for it.
fn authentic(text: &str) -> Result<Contents, Error> {
    let mut sealed = SealedExport::parse(text)
        .map_err(|problem| Error::KeyExport { problem: problem.to_string() })?;
    let loaded = master_key::fingerprints()?;
    for master_key in sealed.master_keys() {
        if loaded.contains(&master_key) {
            master_key::with_export_key(master_key, |key| sealed.check(key))?.map_err(|_| {
                Error::KeyExport { problem: "it was changed since it was made".into() }
            })?;
        }
    }
    match sealed.open() {
        Ok((contents, _)) => Ok(contents),
        Err(missing) => Err(not_loaded(missing.master_keys, loaded)),
    }
}

fn not_loaded(needed: Vec<Fingerprint>, loaded: Vec<Fingerprint>) -> Error {
    Error::KeyExportMasterKey { needed, loaded }
}

fn refuse_unless_loaded(
    needed: &[Fingerprint],
    error: impl FnOnce(Vec<Fingerprint>, Vec<Fingerprint>) -> Error,
) -> Result<(), Error> {
    let loaded = master_key::fingerprints()?;
    if needed.iter().all(|one| loaded.contains(one)) {
        return Ok(());
    }
    Err(error(needed.to_vec(), loaded))
}

fn refuse_unless_it_opens(key: &KeyEntry) -> Result<(), Error> {
    let Some(wrapped) = &key.wrapped_key else { return Ok(()) };
    let problem = |what: &str| Error::KeyExport { problem: format!("key {} {what}", key.key_id) };
    let purpose = Purpose::parse(&key.purpose);
    if purpose.is_none_or(|purpose| purpose.algorithm() != key.algorithm) {
        return Err(problem("has an algorithm or purpose that this version does not know"));
    }
    let check = with_scrubbed_stack::<DEEP, _>(|| {
        master_key::unwrap_key(key.master_key, wrapped, &key.metadata(), &key.check)
            .map(|opened| opened.check(key.key_id))
    });
    match check {
        Ok(check) if check == key.check => Ok(()),
        Ok(_) | Err(Error::WrappedKeyNotAuthentic(_)) => Err(problem("does not open")),
        Err(error) => Err(error),
    }
}
