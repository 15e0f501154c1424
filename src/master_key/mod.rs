//! The master key: where it comes from, and the process's loaded copy.
//!
//! What is kept is derived from the key ([`MasterKey`]); the key's own bytes exist only while a source
//! is read, in locked memory, on a stack that is scrubbed.

mod command;
mod file;
mod setting;
mod watch;

use std::cell::{Cell, RefCell};

use fieldcrypt_envelope::master_key_text;
use fieldcrypt_envelope::{DataKey, Fingerprint, KeyMetadata, MasterKey, RewrapError, UnwrapError};
use fieldcrypt_locked_memory::{DEEP, LockedSlab, with_scrubbed_stack};

use crate::error::{Error, Report};
use crate::events::{self, Event, Surviving};
use crate::pg::{background, clock, encoding, report};
use crate::{pg, settings};

pub use watch::init;

/// Bytes that a source may give: sixteen keys with generous comments.
const MAX_TEXT: usize = 64 * 1024;

/// Where the loaded master keys came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `fieldcrypt.master_key_file`.
    File,
    /// `fieldcrypt.master_key_command`.
    Command,
    /// `fieldcrypt.master_key`.
    Setting,
}

impl Source {
    /// The setting that configures it.
    pub fn setting(self) -> &'static str {
        match self {
            Self::File => "fieldcrypt.master_key_file",
            Self::Command => "fieldcrypt.master_key_command",
            Self::Setting => "fieldcrypt.master_key",
        }
    }
}

/// What `master_key_status()` shows.
pub struct Status {
    /// The source.
    pub source: Source,
    /// The loaded keys, in order.
    pub fingerprints: Vec<Fingerprint>,
    /// When they were loaded, in Postgres's time.
    pub loaded_at: i64,
    /// Why a later reload failed, if one did: the keys loaded before are still in use.
    pub problem: Option<String>,
}

struct Loaded {
    source: Source,
    keys: LockedSlab<MasterKey>,
    order: Vec<(Fingerprint, u32)>,
    loaded_at: i64,
    configuration_time: i64,
    problem: Option<String>,
}

impl Loaded {
    /// The keys, in order.
    fn fingerprints(&self) -> Vec<Fingerprint> {
        self.order.iter().map(|(fingerprint, _)| *fingerprint).collect()
    }

    /// Where a key lies.
    fn index(&self, wanted: Fingerprint) -> Option<u32> {
        self.order.iter().find(|(known, _)| *known == wanted).map(|(_, index)| *index)
    }
}

thread_local! {
    static LOADED: RefCell<Option<Loaded>> = const { RefCell::new(None) };
    static EPOCH: Cell<u64> = const { Cell::new(0) };
}

/// Counts the changes of the loaded keys: what was unwrapped under an earlier one is to be forgotten.
#[inline]
pub fn epoch() -> u64 {
    EPOCH.get()
}

/// The fingerprints of the loaded keys, in order; loads them if need be.
pub fn fingerprints() -> Result<Vec<Fingerprint>, Error> {
    ensure_loaded()?;
    Ok(LOADED.with_borrow(|loaded| loaded.as_ref().map_or_else(Vec::new, Loaded::fingerprints)))
}

/// Opens a wrapped key with the master key that wrapped it.
pub fn unwrap_key(
    master_key: Fingerprint,
    wrapped: &[u8],
    metadata: &KeyMetadata<'_>,
    check: &[u8],
) -> Result<DataKey, Error> {
    with_key(master_key, |key| {
        key.unwrap_key(wrapped, metadata, check).map_err(|error| match error {
            UnwrapError::Malformed | UnwrapError::NotAuthentic => {
                Error::WrappedKeyNotAuthentic(metadata.key_id)
            }
        })
    })
}

/// What a loaded master key says to an export of the keys.
pub fn with_export_key<R>(
    master_key: Fingerprint,
    work: impl FnOnce(&MasterKey) -> R,
) -> Result<R, Error> {
    with_key(master_key, |key| Ok(work(key)))
}

/// Wraps a new key.
pub fn wrap_key(
    master_key: Fingerprint,
    data_key: &DataKey,
    metadata: &KeyMetadata<'_>,
) -> Result<Vec<u8>, Error> {
    with_key(master_key, |key| Ok(key.wrap_key(data_key, metadata)?.to_vec()))
}

/// Wraps a key that one master key wraps under another, and checks the result.
pub fn rewrap(
    from: Fingerprint,
    to: Fingerprint,
    wrapped: &[u8],
    metadata: &KeyMetadata<'_>,
    check: &[u8],
) -> Result<Vec<u8>, Error> {
    with_key(from, |_| Ok(()))?;
    with_key(to, |_| Ok(()))?;
    LOADED.with_borrow_mut(|loaded| {
        let loaded = loaded.as_mut().ok_or(Error::NoMasterKey)?;
        let [Some(from), Some(to)] = [from, to].map(|wanted| loaded.index(wanted)) else {
            return Err(Error::NoMasterKey);
        };
        let Some((from, to)) = loaded.keys.get_two(from, to) else {
            return Err(Error::NoMasterKey);
        };
        match from.rewrap(to, wrapped, metadata, check) {
            Ok(rewrapped) => Ok(rewrapped.to_vec()),
            Err(RewrapError::Unwrap(_)) => Err(Error::WrappedKeyNotAuthentic(metadata.key_id)),
            Err(RewrapError::RandomnessUnavailable) => Err(Error::Randomness),
            Err(RewrapError::Verification) => Err(Error::Internal(
                "a key that was wrapped again did not open to the same key".into(),
            )),
        }
    })
}

/// Reads the source again at once, whether or not a reload has reached this session, and gives the
/// first key's fingerprint.
pub fn read_again() -> Result<Fingerprint, Error> {
    adopt(recorded(load())?);
    fingerprints()?.first().copied().ok_or(Error::NoMasterKey)
}

/// Reads the source again if that helps: a key is needed that is not loaded, and this session may be in
/// the middle of a statement that began before the reload. At most once a second, since the source may
/// be a command.
pub fn look_again_for(wanted: Fingerprint) {
    const PAUSE: i64 = 1_000_000;
    thread_local! { static LAST: Cell<i64> = const { Cell::new(i64::MIN) } }
    let now = clock::now();
    if now.saturating_sub(LAST.get()) < PAUSE {
        return;
    }
    LAST.set(now);
    match load() {
        Ok(fresh) if fresh.index(wanted).is_some() => {
            if let Ok(fresh) = recorded(Ok(fresh)) {
                adopt(fresh);
            }
        }
        _ => {}
    }
}

/// Reads the source again if the configuration was reloaded since. One comparison otherwise.
#[inline]
pub fn notice_reload() {
    let stale = LOADED.with_borrow(|loaded| {
        loaded
            .as_ref()
            .is_some_and(|loaded| loaded.configuration_time != pg::setting::configuration_time())
    });
    if stale {
        reload();
    }
}

/// Whether a master key is loaded. Loads none.
pub fn is_loaded() -> bool {
    LOADED.with_borrow(|loaded| loaded.as_ref().is_some_and(|loaded| !loaded.keys.was_wiped()))
}

/// What is loaded, for people.
pub fn status() -> Result<Status, Error> {
    ensure_loaded()?;
    LOADED.with_borrow(|loaded| {
        let loaded = loaded.as_ref().ok_or(Error::NoMasterKey)?;
        Ok(Status {
            source: loaded.source,
            fingerprints: loaded.fingerprints(),
            loaded_at: loaded.loaded_at,
            problem: loaded.problem.clone(),
        })
    })
}

fn with_key<R>(
    wanted: Fingerprint,
    work: impl FnOnce(&MasterKey) -> Result<R, Error>,
) -> Result<R, Error> {
    ensure_loaded()?;
    let is_loaded = LOADED
        .with_borrow(|loaded| loaded.as_ref().is_some_and(|loaded| loaded.index(wanted).is_some()));
    if !is_loaded {
        look_again_for(wanted);
    }
    LOADED.with_borrow_mut(|loaded| {
        let loaded = loaded.as_mut().ok_or(Error::NoMasterKey)?;
        let index = loaded.index(wanted);
        match index.and_then(|index| loaded.keys.get_mut(index)) {
            Some(key) => work(key),
            None => {
                Err(Error::WrongMasterKey { needed: vec![wanted], loaded: loaded.fingerprints() })
            }
        }
    })
}

fn ensure_loaded() -> Result<(), Error> {
    if is_loaded() {
        notice_reload();
        return Ok(());
    }
    let fresh = recorded(load())?;
    LOADED.set(Some(fresh));
    Ok(())
}

/// Keeps what is loaded if the source has become unusable: a slip in a file must not stop a running
/// application. The log says so, and `master_key_status()`.
fn reload() {
    let configuration_time = pg::setting::configuration_time();
    match recorded(load()) {
        Ok(fresh) => adopt(fresh),
        Err(error) => {
            let problem = error.report();
            LOADED.with_borrow_mut(|loaded| {
                if let Some(loaded) = loaded {
                    loaded.configuration_time = configuration_time;
                    loaded.problem = Some(problem.message.clone());
                }
            });
            let message =
                format!("the master key was not reloaded, the old one stays: {}", problem.message);
            report::warn(&Report { message, ..problem });
        }
    }
}

/// Records that the source was read, or that it gave nothing usable. Gives the error to be raised.
fn recorded(outcome: Result<Loaded, Error>) -> Result<Loaded, Error> {
    const PAUSE: i64 = 60_000_000;
    thread_local! { static LAST_FAILURE: RefCell<(String, i64)> = const { RefCell::new((String::new(), i64::MIN)) } }
    if !background::is_session() {
        return outcome;
    }
    match outcome {
        Ok(loaded) => {
            let names: Vec<_> =
                loaded.fingerprints().into_iter().map(Fingerprint::to_hex).collect();
            let reason = format!("{}: {}", loaded.source.setting(), names.join(", "));
            let reason = encoding::from_utf8(reason.as_bytes()).unwrap_or_default();
            let details = Surviving { reason: Some(&reason), ..Surviving::default() };
            events::push_load(Event::MasterKeyLoaded, &[&reason], &details)?;
            Ok(loaded)
        }
        Err(error) => {
            let report = error.report();
            // That it can be loaded again will be news.
            events::forget_load();
            let now = clock::now();
            // A session that tries again and again says the same thing once a minute.
            let is_known = LAST_FAILURE.with_borrow(|(known, at)| {
                *known == report.message && now.saturating_sub(*at) < PAUSE
            });
            if !is_known {
                record_failure(report.sqlstate.as_str(), &report.message)?;
                LAST_FAILURE.set((report.message, now));
            }
            Err(error)
        }
    }
}

fn record_failure(code: &str, reason: &str) -> Result<(), Error> {
    let reason = encoding::from_utf8(reason.as_bytes()).unwrap_or_default();
    events::push(
        Event::MasterKeyFailed,
        &Surviving { error_code: Some(code), reason: Some(&reason), ..Surviving::default() },
    )
}

/// Puts what was read in the place of what was loaded.
fn adopt(fresh: Loaded) {
    let same_keys = LOADED.with_borrow(|loaded| {
        loaded.as_ref().is_some_and(|loaded| loaded.fingerprints() == fresh.fingerprints())
    });
    LOADED.set(Some(fresh));
    if !same_keys {
        EPOCH.set(EPOCH.get() + 1);
    }
}

fn load() -> Result<Loaded, Error> {
    let configuration_time = pg::setting::configuration_time();
    let source = configured_source()?;
    let mut text = LockedSlab::<[u8; MAX_TEXT / 2]>::new();
    let slot =
        text.insert([0; MAX_TEXT / 2]).map_err(|_| Error::OutOfMemory { what: "master keys" })?;
    let buffer = text.get_mut(slot).ok_or(Error::OutOfMemory { what: "master keys" })?;
    let length = match source {
        Source::File => file::read(buffer)?,
        Source::Command => command::read(buffer)?,
        Source::Setting => setting::read(buffer)?,
    };
    if length == buffer.len() {
        return Err(unusable(source, "gives more text than master keys take"));
    }
    let mut keys = LockedSlab::new();
    let mut order = Vec::new();
    let mut out_of_memory = false;
    let parsed = with_scrubbed_stack::<DEEP, _>(|| {
        master_key_text::parse_each(&buffer[..length], |key| {
            let fingerprint = key.fingerprint();
            match keys.insert(key) {
                Ok(index) => order.push((fingerprint, index)),
                Err(_) => out_of_memory = true,
            }
        })
    });
    if out_of_memory {
        return Err(Error::OutOfMemory { what: "master keys" });
    }
    parsed.map_err(|error| unusable(source, &format!("gives {error}")))?;
    Ok(Loaded { source, keys, order, loaded_at: clock::now(), configuration_time, problem: None })
}

fn configured_source() -> Result<Source, Error> {
    if settings::master_key_is_unprotected() {
        return Err(Error::MasterKeySource {
            problem: "fieldcrypt.master_key is set without pg_fieldcrypt in shared_preload_libraries: refused, since every role can read it".into(),
            hint: "Take the setting away, treat this master key as disclosed, and use fieldcrypt.master_key_file; or preload the library.",
        });
    }
    let mut configured = [
        (Source::File, settings::master_key_file().is_some()),
        (Source::Command, settings::master_key_command().is_some()),
        (Source::Setting, settings::master_key().is_some()),
    ]
    .into_iter()
    .filter_map(|(source, is_set)| is_set.then_some(source));
    match (configured.next(), configured.next()) {
        (None, _) => Err(Error::NoMasterKey),
        (Some(source), None) => Ok(source),
        (Some(first), Some(second)) => Err(Error::MasterKeySource {
            problem: format!("both {} and {} are set", first.setting(), second.setting()),
            hint: "Set exactly one source of the master key.",
        }),
    }
}

fn unusable(source: Source, problem: &str) -> Error {
    Error::MasterKeySource {
        problem: format!("{} {problem}", source.setting()),
        hint: "It must give one key a line, each of 64 hex digits or base64 of 32 bytes, for instance from: openssl rand -hex 32",
    }
}
