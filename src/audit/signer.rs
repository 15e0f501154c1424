//! Signs checkpoints, in the launcher: the signing keys are in the memory of that process alone, which is
//! connected to no database and runs no SQL.
//!
//! It keeps the tree that it signed last for each database, and signs nothing but an extension of it. So
//! whoever can change the tables, and run SQL as a superuser, can't have a changed past signed.

use std::collections::HashMap;

use fieldcrypt_audit::{
    Checkpoint, CompactRange, Frontier, Hash, LogId, Place, SignerStatement, SigningKey, sign_note,
};
use serde::{Deserialize, Serialize};

use super::settings;
use crate::pg::session;

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
    /// Why there is none.
    pub problem: Option<String>,
}

/// The signers of all databases.
#[derive(Default)]
pub struct Signers(HashMap<u32, Signer>);

struct Signer {
    log: LogId,
    /// What was signed last.
    signed: State,
    key: SigningKey,
    since: i64,
    /// The state before the last checkpoint, and that one, in case it never was stored.
    last: Option<(State, String)>,
    /// The key before this one, and what it said of it.
    succession: Option<(String, String)>,
}

#[derive(Clone, PartialEq, Eq)]
struct State {
    frontier: Frontier,
    previous: Option<Hash>,
}

impl Signers {
    /// Answers a worker's question.
    pub fn answer(&mut self, database: u32, question: &[u8]) -> Vec<u8> {
        let answer = self.try_answer(database, question).unwrap_or_else(|problem| Answer {
            problem: Some(problem.into()),
            ..Answer::default()
        });
        serde_json::to_vec(&answer).unwrap_or_default()
    }

    /// Erases the key of a database that is gone.
    pub fn forget(&mut self, database: u32) {
        self.0.remove(&database);
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
        if self.0.get(&database).is_none_or(|signer| signer.log != log) {
            self.0.insert(database, Signer::begin(log, stored.clone())?);
        }
        let Some(signer) = self.0.get_mut(&database) else { return Err(GARBLED) };
        let note = signer.sign(&question, stored, &range)?;
        let key = signer.key.verifying_key().to_string();
        let succession = signer
            .succession
            .as_ref()
            .filter(|(before, _)| Some(before) == question.known_key.as_ref())
            .map(|(_, statement)| statement.clone());
        Ok(Answer { note: Some(note), key, succession, problem: None })
    }
}

impl Signer {
    fn begin(log: LogId, signed: State) -> Result<Self, &'static str> {
        let key = SigningKey::generate(&log.origin()).map_err(|_| NO_KEY)?;
        Ok(Self { log, signed, key, since: session::now(), last: None, succession: None })
    }

    fn sign(
        &mut self,
        question: &Question,
        stored: State,
        range: &CompactRange,
    ) -> Result<String, &'static str> {
        if stored != self.signed {
            return match &self.last {
                Some((before, note)) if *before == stored => Ok(note.clone()),
                _ => Err(
                    "the log or its checkpoints were changed since the last one was signed: nothing is signed until fieldcrypt.acknowledge_audit_fork(reason), which begins a new origin",
                ),
            };
        }
        let now = session::now();
        if now - self.since >= settings::key_epoch() {
            self.succeed(question, now)?;
        }
        let mut frontier = stored.frontier.clone();
        frontier.append_range(range).map_err(|_| "the rows to be signed do not follow the last")?;
        let previous = stored.previous;
        let checkpoint = Checkpoint::of(
            &self.log,
            &frontier,
            session::unix_time(now),
            previous.as_ref(),
            question.is_final,
        )
        .ok_or("the clock is out of range")?;
        let note = sign_note(&checkpoint.to_text(), &self.key).map_err(|_| NO_KEY)?;
        self.signed = State { frontier, previous: Some(checkpoint.hash()) };
        self.last = Some((stored, note.clone()));
        Ok(note)
    }

    /// The key signs its successor, and is erased.
    fn succeed(&mut self, question: &Question, now: i64) -> Result<(), &'static str> {
        let successor = SigningKey::generate(&self.log.origin()).map_err(|_| NO_KEY)?;
        let (system_identifier, database, timeline) = question.place;
        let statement = SignerStatement {
            log: self.log,
            place: Place { system_identifier, database, timeline },
            key: successor.verifying_key().clone(),
            size: self.signed.frontier.size(),
            root: self.signed.frontier.root(),
            at: session::unix_time(now),
            is_clean: true,
            previous: Some(self.key.verifying_key().clone()),
        };
        let statement = statement.by_signer(&self.key).map_err(|_| NO_KEY)?;
        let before = std::mem::replace(&mut self.key, successor);
        self.succession = Some((before.verifying_key().to_string(), statement));
        self.since = now;
        Ok(())
    }
}

const NO_KEY: &str = "the operating system gives no random bytes for a signing key";

fn unhex(text: &str) -> Option<Vec<u8>> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}
