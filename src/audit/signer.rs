//! Signs checkpoints, in the launcher: the signing keys are in the memory of that process alone, which is
//! connected to no database and runs no SQL.
//!
//! It keeps the tree that it signed last for each database, and signs nothing but an extension of it. So
//! whoever can change the tables, and run SQL as a superuser, can't have a changed past signed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use fieldcrypt_audit::{
    Checkpoint, CompactRange, Frontier, Hash, LogId, Place, SignerStatement, SigningKey,
    VerifyingKey, sign_note,
};
use serde::{Deserialize, Serialize};

use super::settings;
use crate::pg::clock;

/// What a worker asks for: a checkpoint over the rows that it has sealed and committed.
#[derive(Serialize, Deserialize)]
pub struct Question {
    /// The log.
    pub log: String,
    /// System identifier, database and timeline.
    pub place: (u64, u32, u32),
    /// `Frontier::to_bytes` as of the last checkpoint that was stored, in hex.
    pub frontier: String,
    /// The hash of that checkpoint, in hex.
    pub previous: Option<String>,
    /// `CompactRange::to_bytes` of the leaves since, in hex.
    pub range: String,
    /// Whether everything that has happened is sealed.
    pub is_final: bool,
    /// The signing key that the log knows, if any.
    pub known_key: Option<String>,
    /// Whether the last checkpoint was final, or there is none.
    pub is_after_final: bool,
}

/// The launcher's answer.
#[derive(Serialize, Deserialize, Default, Clone)]
pub struct Answer {
    /// The signed checkpoint. It may be an earlier one than was asked for, if that one was signed and its
    /// worker did not live to store it.
    pub note: Option<String>,
    /// The key that signed it.
    pub key: String,
    /// A statement by which the key that the log knows vouches for this one.
    pub succession: Option<String>,
    /// A statement about this key by itself, for the audit key to vouch for.
    pub introduction: Option<String>,
    /// Why there is none.
    pub problem: Option<String>,
}

impl Answer {
    /// That nothing is signed.
    pub fn refusal(problem: &str) -> Self {
        Self { problem: Some(problem.into()), ..Self::default() }
    }
}

/// The signers of all databases.
pub struct Signers {
    /// By database and log. A log that another one follows is not forgotten: it may not be signed twice.
    signers: HashMap<(u32, LogId), Signer>,
    /// The launcher before this one left nothing undone.
    is_clean: bool,
}

struct Signer {
    log: LogId,
    place: Place,
    /// What was signed last.
    signed: State,
    key: SigningKey,
    identity: Identity,
    /// When the key was first used.
    used_since: Option<i64>,
    /// The state before the last checkpoint, and that one, in case it never was stored.
    last: Option<(State, Signed)>,
}

/// A checkpoint, and who signed it.
#[derive(Clone)]
struct Signed {
    note: String,
    by: Identity,
}

/// What is known of a key. It is needed longer than the key.
#[derive(Clone)]
struct Identity {
    key: String,
    /// The key before this one, and what it said of it.
    succession: Option<(String, String)>,
    /// What this key says of itself.
    introduction: String,
}

#[derive(Clone, PartialEq, Eq)]
struct State {
    frontier: Frontier,
    previous: Option<Hash>,
}

impl Signers {
    /// No keys yet. `is_clean` if whoever signed before has finished in order.
    pub fn new(is_clean: bool) -> Self {
        Self { signers: HashMap::new(), is_clean }
    }

    /// Answers a worker's question.
    pub fn answer(&mut self, database: u32, question: &[u8]) -> Vec<u8> {
        let answer = self.try_answer(database, question).unwrap_or_else(Answer::refusal);
        serde_json::to_vec(&answer).unwrap_or_default()
    }

    /// Erases the key of a database that is gone.
    pub fn forget(&mut self, database: u32) {
        self.signers.retain(|(of, _), _| *of != database);
    }

    fn try_answer(&mut self, database: u32, question: &[u8]) -> Result<Answer, &'static str> {
        const GARBLED: &str = "the question to the signer is garbled";
        let question: Question = serde_json::from_slice(question).map_err(|_| GARBLED)?;
        let log = LogId::of_origin(&format!("pg_fieldcrypt/{}", question.log)).ok_or(GARBLED)?;
        let frontier = unhex(&question.frontier).ok_or(GARBLED)?;
        let stored = State {
            frontier: Frontier::from_bytes(&frontier).map_err(|_| GARBLED)?,
            previous: match &question.previous {
                None => None,
                Some(hash) => {
                    Some(unhex(hash).and_then(|hash| hash.try_into().ok()).ok_or(GARBLED)?)
                }
            },
        };
        let range = unhex(&question.range).ok_or(GARBLED)?;
        let range = CompactRange::from_bytes(&range).map_err(|_| GARBLED)?;
        let before = self.signers.iter().filter(|((of, _), _)| *of == database);
        let count = before.clone().count();
        // A log that follows one that was signed here goes on from what was signed.
        let follows =
            count == 0 || before.clone().any(|(_, one)| one.signed.frontier == stored.frontier);
        let signer = match self.signers.entry((database, log)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if count >= MOST_LOGS => return Err(TOO_MANY),
            Entry::Vacant(place) => {
                // Before the first key nothing was signed that could have been left unfinished.
                let is_clean = follows
                    && question.is_after_final
                    && (self.is_clean && count == 0 || question.known_key.is_none());
                place.insert(Signer::begin(log, &question, stored.clone(), is_clean)?)
            }
        };
        let Signed { note, by } = signer.sign(question.is_final, stored, &range)?;
        let succession = by
            .succession
            .filter(|(before, _)| Some(before) == question.known_key.as_ref())
            .map(|(_, statement)| statement);
        let introduction = Some(by.introduction);
        Ok(Answer { note: Some(note), key: by.key, succession, introduction, problem: None })
    }

    /// Has keys that were used for an epoch sign their successors, and erases them, whether anything is to
    /// be signed or not.
    pub fn end_epochs(&mut self) {
        let now = clock::now();
        for signer in self.signers.values_mut() {
            if signer.used_since.is_some_and(|since| now - since >= settings::key_epoch()) {
                // Without random bytes the key goes on for now.
                let _ = signer.succeed();
            }
        }
    }
}

impl Signer {
    fn begin(
        log: LogId,
        question: &Question,
        signed: State,
        is_clean: bool,
    ) -> Result<Self, &'static str> {
        let key = SigningKey::generate(&log.origin()).map_err(|_| NO_KEY)?;
        let previous = match &question.known_key {
            None => None,
            Some(text) => Some(VerifyingKey::parse(text).map_err(|_| "a signing key is garbled")?),
        };
        let (system_identifier, database, timeline) = question.place;
        let place = Place { system_identifier, database, timeline };
        let statement = statement(log, place, &signed, &key, previous, is_clean);
        let identity = Identity {
            key: key.verifying_key().to_string(),
            succession: None,
            introduction: statement.by_signer(&key).map_err(|_| NO_KEY)?,
        };
        Ok(Self { log, place, signed, key, identity, used_since: None, last: None })
    }

    fn sign(
        &mut self,
        is_final: bool,
        stored: State,
        range: &CompactRange,
    ) -> Result<Signed, &'static str> {
        if stored != self.signed {
            return match &self.last {
                Some((before, signed)) if *before == stored => Ok(signed.clone()),
                _ => Err(
                    "the log or its checkpoints were changed since the last one was signed: nothing is signed until fieldcrypt.acknowledge_audit_fork(reason), which begins a new origin",
                ),
            };
        }
        let now = clock::now();
        let mut frontier = stored.frontier.clone();
        frontier.append_range(range).map_err(|_| "the rows to be signed do not follow the last")?;
        let previous = stored.previous;
        let checkpoint = Checkpoint::of(
            &self.log,
            &frontier,
            clock::unix_time(now),
            previous.as_ref(),
            is_final,
        )
        .ok_or("the clock is out of range")?;
        let note = sign_note(&checkpoint.to_text(), &self.key).map_err(|_| NO_KEY)?;
        let signed = Signed { note, by: self.identity.clone() };
        self.signed = State { frontier, previous: Some(checkpoint.hash()) };
        self.last = Some((stored, signed.clone()));
        self.used_since.get_or_insert(now);
        Ok(signed)
    }

    /// The key signs its successor, and is erased. The log gets to know of it with the next checkpoint. A
    /// successor that has signed nothing needs none itself, so there is never more than one to tell of.
    fn succeed(&mut self) -> Result<(), &'static str> {
        let successor = SigningKey::generate(&self.log.origin()).map_err(|_| NO_KEY)?;
        let previous = Some(self.key.verifying_key().clone());
        let statement = statement(self.log, self.place, &self.signed, &successor, previous, true);
        let introduction = statement.by_signer(&successor).map_err(|_| NO_KEY)?;
        let succession = statement.by_signer(&self.key).map_err(|_| NO_KEY)?;
        let key = successor.verifying_key().to_string();
        let before = std::mem::replace(&mut self.identity.key, key);
        self.identity.succession = Some((before, succession));
        self.identity.introduction = introduction;
        self.key = successor;
        self.used_since = None;
        Ok(())
    }
}

fn statement(
    log: LogId,
    place: Place,
    signed: &State,
    key: &SigningKey,
    previous: Option<VerifyingKey>,
    is_clean: bool,
) -> SignerStatement {
    SignerStatement {
        log,
        place,
        key: key.verifying_key().clone(),
        size: signed.frontier.size(),
        root: signed.frontier.root(),
        at: clock::unix_time(clock::now()),
        is_clean,
        previous,
    }
}

/// More than anybody needs between two starts of the server: each new origin of a database is one.
const MOST_LOGS: usize = 1000;
const TOO_MANY: &str = "the log of this database got too many names since the server started";
const NO_KEY: &str = "the operating system gives no random bytes for a signing key";

fn unhex(text: &str) -> Option<Vec<u8>> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}
