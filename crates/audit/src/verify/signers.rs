//! Signing keys: each was vouched for, by whom it says, in the order in which they are stored.

use super::finding::FindingKind;
use super::{AuditKeys, Expected, Signer, Verifier, is_being_signed, is_same_time};
use crate::note::{Note, VerifyingKey};
use crate::signer::{Introduction, SignerStatement};
use crate::tree::Hash;

/// A signer as far as it could be read.
pub(super) struct SignerState {
    pub id: i64,
    pub key: Option<VerifyingKey>,
    /// What its introduction says.
    pub statement: Option<SignerStatement>,
    pub introduction: Option<Introduction>,
    /// Whether somebody known vouches for it.
    pub is_introduced: bool,
    /// Whether nothing is known of it, or of the key that introduces it: there was no master key then.
    pub is_unknown: bool,
    /// Which origin it began, if it began one.
    pub begins_origin: Option<usize>,
}

impl Verifier {
    pub(super) fn introduce(&mut self, signers: &[Signer], keys: &mut dyn AuditKeys) {
        for signer in signers {
            let state = self.introduced(signer, keys);
            if let Some(statement) = &state.statement {
                let expected = Expected::Signer(self.signers.len());
                self.expected.push_back((statement.size, statement.root, expected));
            }
            if self.signer_by_id.insert(signer.id, self.signers.len()).is_some() {
                self.findings.push(FindingKind::SignerChanged, None, None, || {
                    format!("signer {}: its id is that of another one", signer.id)
                });
            }
            self.signers.push(state);
        }
    }

    fn introduced(&mut self, signer: &Signer, keys: &mut dyn AuditKeys) -> SignerState {
        let mut state = SignerState {
            id: signer.id,
            key: VerifyingKey::parse(&signer.public_key).ok(),
            statement: None,
            introduction: None,
            is_introduced: false,
            is_unknown: false,
            begins_origin: None,
        };
        let id = signer.id;
        let mut found = |kind, detail: String| {
            self.findings.push(kind, None, None, || format!("signer {id}: {detail}"));
        };
        let opened = Note::parse(&signer.proof)
            .and_then(|note| SignerStatement::open(&note).map(|opened| (note, opened)));
        let Ok((note, (statement, introduction))) = opened else {
            found(FindingKind::SignerChanged, "its introduction can't be read".into());
            return state;
        };
        // The columns repeat what the introduction says.
        let by = match introduction {
            Introduction::Mac(_) => "mac",
            Introduction::Predecessor => "successor",
            Introduction::Itself => "itself",
        };
        for (column, is_same) in [
            ("public_key", state.key.as_ref() == Some(&statement.key)),
            ("from_size", u64::try_from(signer.from_size) == Ok(statement.size)),
            ("introduced_at", is_same_time(signer.introduced_at, statement.at)),
            ("introduced_by", signer.introduced_by == by),
            ("is_clean", signer.is_clean == statement.is_clean),
        ] {
            if !is_same {
                let detail = format!("column {column} is not what its introduction says");
                found(FindingKind::SignerChanged, detail);
            }
        }
        if statement.key.name() != statement.log.origin() {
            found(FindingKind::SignerChanged, "its key is named for another log".into());
        }
        let previous = self.signers.last();
        let previous_key = previous.and_then(|previous| previous.key.as_ref());
        // The first key of a log need not name the last one of another.
        let previous_log = previous.and_then(|previous| Some(previous.statement.as_ref()?.log));
        let is_first = statement.previous.is_none() && previous_log != Some(statement.log);
        if !is_first && statement.previous.as_ref() != previous_key {
            found(
                FindingKind::SignerMissing,
                match (&statement.previous, previous_key) {
                    (None, _) => "it says that no key came before it, but one is stored".into(),
                    (Some(key), _) => format!("the key before it, {key}, is not stored before it"),
                },
            );
        }
        let mut not_introduced = None;
        state.is_introduced = match introduction {
            Introduction::Predecessor => {
                let verdict = statement.previous.as_ref().map(|key| note.verify(key));
                let is_valid = verdict == Some(Ok(()));
                if !is_valid {
                    let detail = "its predecessor's signature is not valid".into();
                    found(FindingKind::SignerNotIntroduced, detail);
                }
                let is_known = previous.is_some_and(|one| {
                    one.is_introduced && one.key.is_some() && one.key == statement.previous
                });
                if is_valid && !is_known {
                    state.is_unknown = previous.is_some_and(|one| {
                        one.is_unknown && one.key.is_some() && one.key == statement.previous
                    });
                    let detail = "its predecessor is not introduced itself";
                    not_introduced.replace(detail);
                }
                is_valid && is_known
            }
            Introduction::Mac(key_id) => {
                let mac = note.signatures().first().map(|line| line.signature.as_slice());
                let mac = mac.and_then(|mac| mac.try_into().ok()).unwrap_or(&[0; 32]);
                let text = note.text().as_bytes();
                match keys.is_mac_of(key_id.as_i64(), text, mac) {
                    Some(true) => true,
                    Some(false) => {
                        let detail = format!("the MAC of audit key {key_id} is not valid");
                        found(FindingKind::SignerNotIntroduced, detail);
                        false
                    }
                    None => {
                        let detail = format!(
                            "audit key {key_id}, which introduces it, is not there, or not usable"
                        );
                        found(FindingKind::SignerNotChecked, detail);
                        // Not known to be bad: its successors are as good as it is.
                        true
                    }
                }
            }
            Introduction::Itself => {
                state.is_unknown = true;
                not_introduced.replace("it was introduced by nobody: no master key was loaded");
                false
            }
        };
        if let Some(detail) = not_introduced {
            let kind = FindingKind::SignerNotIntroduced;
            let told = || format!("signer {id}: {detail}");
            if state.is_unknown {
                self.findings.push_excusable(kind, statement.size, None, told);
            } else {
                self.findings.push(kind, None, None, told);
            }
        }
        self.compare_with_origin(&mut state, &statement, signer);
        state.introduction = Some(introduction);
        state.statement = Some(statement);
        state
    }

    /// A log's first key says where and at what size it began.
    fn compare_with_origin(
        &mut self,
        state: &mut SignerState,
        statement: &SignerStatement,
        signer: &Signer,
    ) {
        let id = signer.id;
        let mut found = |kind, detail: String| self.findings.push(kind, None, None, || detail);
        let Some(index) = self.origins.iter().position(|origin| origin.log == statement.log) else {
            let detail = format!("signer {id}: its log {} is not among the origins", statement.log);
            return found(FindingKind::OriginChanged, detail);
        };
        let log_of = |one: &SignerState| one.statement.as_ref().map(|statement| statement.log);
        let is_first = !self.signers.iter().any(|one| log_of(one) == Some(statement.log));
        let is_last_log = self.signers.last().and_then(log_of);
        let origin = &self.origins[index];
        let number = origin.id;
        if number != signer.origin_id {
            let detail = format!("signer {id}: column origin_id is not what its introduction says");
            found(FindingKind::SignerChanged, detail);
        }
        if is_first {
            state.begins_origin = Some(index);
            // Those between had no key.
            let before = self.signers.iter().filter_map(|one| one.begins_origin).max();
            if before.is_some_and(|before| before > index) {
                found(
                    FindingKind::OriginChanged,
                    format!(
                        "origin {number}: it is not in the order in which signers began them (signer {id})"
                    ),
                );
            }
            let place = statement.place;
            // The key knows of the last checkpoint; rows may have been sealed behind it.
            let size = i64::try_from(statement.size).unwrap_or(i64::MAX);
            let is_same = (size < origin.old_size
                || size == origin.old_size && origin.old_root == statement.root)
                && origin.system_identifier.cast_unsigned() == place.system_identifier
                && origin.database_oid == i64::from(place.database)
                && origin.timeline == i64::from(place.timeline);
            if !is_same {
                found(
                    FindingKind::OriginChanged,
                    format!(
                        "origin {number}: its size, root or place is not what its first key says (signer {id})"
                    ),
                );
            }
        } else if is_last_log != Some(statement.log) {
            let detail = format!("signer {id}: its log {} had ended before", statement.log);
            found(FindingKind::OriginChanged, detail);
        }
    }

    pub(super) fn settle_signer(
        &mut self,
        index: usize,
        size: u64,
        known: Option<Hash>,
        root: &Hash,
    ) {
        // What is not known is reported for the span in which it was lost.
        if known.is_none_or(|known| known == *root) {
            return;
        }
        let id = self.signers[index].id;
        self.findings.push(FindingKind::RootMismatch, Some(size), None, || {
            format!("the rows below leaf {size} are not those that signer {id} was introduced with")
        });
    }

    pub(super) fn finish_signers(&mut self, now: i64) {
        let last = self.signers.last().map(|one| one.id);
        let is_stored = |text: &str| {
            let key = VerifyingKey::parse(text).ok();
            self.signers.iter().any(|one| one.key.is_some() && one.key == key)
        };
        for (id, at, key) in &self.told.started {
            // What was stored while the log was being read is not among those that were read before.
            let is_new = last.is_none_or(|last| *id > last) && is_being_signed(*at, now);
            if !is_new && !is_stored(key) {
                let kind = FindingKind::SignerMissing;
                self.findings.push(kind, None, Some(*id), || {
                    format!(
                        "the key {key}, of which a row of event audit_started tells, is not stored"
                    )
                });
            }
        }
        for (before, signer) in self.signers.iter().zip(self.signers.iter().skip(1)) {
            let Some(statement) = &signer.statement else { continue };
            let id = signer.id;
            // A fork is told of itself.
            if !statement.is_clean && signer.begins_origin.is_none() {
                let (kind, size) = (FindingKind::UncleanHandover, statement.size);
                self.findings.push_excusable(kind, size, Some(size), || {
                    format!(
                        "signer {id} took over after a crash: what happened just before may be unsealed, or lost"
                    )
                });
            }
            let earlier = before.statement.as_ref().map_or(0, |before| before.size);
            if statement.size < earlier {
                self.findings.push(FindingKind::SignerChanged, Some(statement.size), None, || {
                    format!("signer {id} begins before its predecessor")
                });
            }
        }
    }
}
