//! A sealed log as the extension would have written it, in memory: to be manipulated.

#![allow(dead_code, clippy::unwrap_used)]

use std::collections::HashMap;

use fieldcrypt_audit::export::{Begin, SEALING_TAKES, Writer};
use fieldcrypt_audit::verify::{
    Acknowledgement, Anchor, AuditKeys, Finding, FindingKind, Origin, Sealing, Signer, Status,
    StoredCheckpoint, Summary, Verifier,
};
use fieldcrypt_audit::{
    AuditKey, Checkpoint, Frontier, Hash, LogId, LogRow, Place, SignerStatement, SigningKey,
    VerifyingKey, sign_note,
};
use fieldcrypt_envelope::{DataKey, KeyId};

/// 2026-11-23 00:00 UTC.
pub const START: i64 = 1_795_392_000_000_000;

/// When it is looked at: late enough for checkpoints and leaves to be missed.
pub const NOW: i64 = START + 1_000_000_000;

pub fn encoded(row: &LogRow) -> Vec<u8> {
    let mut out = Vec::new();
    row.encode(&mut out);
    out
}

pub fn leaf_of(row: &LogRow) -> Hash {
    row.leaf_hash(&encoded(row))
}

/// Writes its MAC.
pub fn authenticate(row: &mut LogRow, keys: &Keys) {
    let key = &keys.0[&keys.current()];
    row.mac = Some(key.mac(&encoded(row)).to_vec());
    row.mac_key_id = Some(keys.current());
}

/// Audit keys, of which the one with the highest id is used.
pub struct Keys(pub HashMap<i64, AuditKey>);

impl Keys {
    pub fn new(ids: &[i64]) -> Self {
        let key = |id: &i64| {
            let key_id = KeyId::new(*id).unwrap();
            (*id, DataKey::generate().unwrap().audit_key(key_id))
        };
        Self(ids.iter().map(key).collect())
    }

    pub fn current(&self) -> i64 {
        *self.0.keys().max().unwrap()
    }
}

impl AuditKeys for &Keys {
    fn is_mac_of(&mut self, key_id: i64, message: &[u8], mac: &[u8; 32]) -> Option<bool> {
        Some(self.0.get(&key_id)?.is_mac_of(message, mac))
    }
}

/// All that is stored of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// In no order.
    pub rows: Vec<LogRow>,
    pub checkpoints: Vec<StoredCheckpoint>,
    pub signers: Vec<Signer>,
    pub origins: Vec<Origin>,
}

impl Stored {
    /// As the database and the offline tool verify: rows by leaf, checkpoints by size and time.
    pub fn verify(&self, anchors: Vec<Anchor>, keys: &Keys) -> (Vec<Finding>, Summary) {
        self.verify_where(Sealing::GoesOn, anchors, keys)
    }

    /// Where it is sealed, or not.
    pub fn verify_where(
        &self,
        sealing: Sealing,
        anchors: Vec<Anchor>,
        mut keys: &Keys,
    ) -> (Vec<Finding>, Summary) {
        let mut verifier = Verifier::new(self.origins.clone(), &self.signers, anchors, &mut keys);
        verifier.sealing(sealing);
        let mut rows: Vec<&LogRow> = self.rows.iter().filter(|row| row.leaf.is_some()).collect();
        rows.sort_by_key(|row| row.leaf);
        let mut checkpoints: Vec<&StoredCheckpoint> = self.checkpoints.iter().collect();
        checkpoints.sort_by_key(|one| (one.size, one.id));
        let mut checkpoints = checkpoints.into_iter().peekable();
        for row in rows {
            while let Some(one) = checkpoints.next_if(|one| Some(one.size) <= row.leaf) {
                verifier.checkpoint(one);
            }
            verifier.row(row, &mut keys);
        }
        checkpoints.for_each(|one| verifier.checkpoint(one));
        for row in self.rows.iter().filter(|row| row.leaf.is_none()) {
            verifier.unsealed_row(row, row.at < NOW - SEALING_TAKES, &mut keys);
        }
        // With the longest interval between two checkpoints that can be set, as an export is judged.
        verifier.finish(NOW - 600_000_000)
    }
}

impl Stored {
    /// As the database exports it.
    pub fn export(&self) -> String {
        let mut writer = Writer::default();
        let mut lines =
            vec![writer.header(NOW, &Begin::First, false, &self.origins, &self.signers)];
        let mut rows: Vec<&LogRow> = self.rows.iter().filter(|row| row.leaf.is_some()).collect();
        rows.sort_by_key(|row| row.leaf);
        let mut checkpoints: Vec<&StoredCheckpoint> = self.checkpoints.iter().collect();
        checkpoints.sort_by_key(|one| (one.size, one.id));
        let mut checkpoints = checkpoints.into_iter().peekable();
        for row in rows {
            while let Some(one) = checkpoints.next_if(|one| Some(one.size) <= row.leaf) {
                lines.push(writer.checkpoint(one));
            }
            lines.push(writer.row(row));
        }
        checkpoints.for_each(|one| lines.push(writer.checkpoint(one)));
        for row in self.rows.iter().filter(|row| row.leaf.is_none()) {
            lines.push(writer.row(row));
        }
        lines.push(writer.end());
        lines.join("\n") + "\n"
    }
}

/// Who seals.
pub struct Sealer {
    pub log: LogId,
    pub place: Place,
    pub tree: Frontier,
    pub key: SigningKey,
    pub now: i64,
    pub previous: Option<Hash>,
    pub stored: Stored,
}

impl Sealer {
    pub fn new(keys: &Keys) -> Self {
        let log = LogId::generate().unwrap();
        let place =
            Place { system_identifier: 7_300_000_000_000_000_000, database: 16_384, timeline: 1 };
        let origin = Origin {
            id: 1,
            log,
            system_identifier: place.system_identifier as i64,
            database_oid: place.database.into(),
            timeline: place.timeline.into(),
            old_log: None,
            old_size: 0,
            old_root: fieldcrypt_audit::tree::empty_root().to_vec(),
            at: START,
            cause: "the first".into(),
            acknowledgement: None,
        };
        let mut sealer = Self {
            log,
            place,
            tree: Frontier::new(),
            key: SigningKey::generate(&log.origin()).ok().unwrap(),
            now: START,
            previous: None,
            stored: Stored {
                rows: Vec::new(),
                checkpoints: Vec::new(),
                signers: Vec::new(),
                origins: vec![origin],
            },
        };
        sealer.tell_of_origin(keys);
        sealer.introduce(None, true, |statement, _| {
            statement.by_audit_key(KeyId::new(keys.current()).unwrap(), &keys.0[&keys.current()])
        });
        sealer
    }

    fn introduce(
        &mut self,
        previous: Option<VerifyingKey>,
        is_clean: bool,
        by: impl FnOnce(&SignerStatement, &SigningKey) -> Result<String, fieldcrypt_audit::Malformed>,
    ) {
        self.now += 1_000_000;
        let statement = SignerStatement {
            log: self.log,
            place: self.place,
            key: self.key.verifying_key().clone(),
            size: self.tree.size(),
            root: self.tree.root(),
            at: self.now,
            is_clean,
            previous,
        };
        let proof = by(&statement, &self.key).unwrap();
        let introduced_by = if proof.contains("audit-key/") { "mac" } else { "successor" };
        self.stored.signers.push(Signer {
            id: self.stored.signers.len() as i64 + 1,
            origin_id: self.stored.origins.len() as i64,
            public_key: statement.key.to_string(),
            introduced_at: statement.at,
            introduced_by: introduced_by.into(),
            from_size: statement.size as i64,
            is_clean,
            proof,
        });
    }

    /// Introduces the key as the first of all.
    pub fn reintroduce(&mut self, keys: &Keys) {
        self.introduce(None, true, |statement, _| {
            statement.by_audit_key(KeyId::new(keys.current()).unwrap(), &keys.0[&keys.current()])
        });
    }

    /// The key signs its successor.
    pub fn succeed(&mut self) {
        let new = SigningKey::generate(&self.log.origin()).ok().unwrap();
        let old = std::mem::replace(&mut self.key, new);
        let previous = old.verifying_key().clone();
        self.introduce(Some(previous), true, |statement, _| statement.by_signer(&old));
    }

    /// The key is lost; the next one is introduced by the audit key.
    pub fn restart(&mut self, keys: &Keys, is_clean: bool) {
        let new = SigningKey::generate(&self.log.origin()).ok().unwrap();
        let old = std::mem::replace(&mut self.key, new);
        let previous = old.verifying_key().clone();
        self.introduce(Some(previous), is_clean, |statement, _| {
            statement.by_audit_key(KeyId::new(keys.current()).unwrap(), &keys.0[&keys.current()])
        });
    }

    /// The log goes on in another place.
    pub fn fork(&mut self, keys: &Keys) {
        let old = std::mem::replace(&mut self.log, LogId::generate().unwrap());
        self.place.timeline += 1;
        self.stored.origins.push(Origin {
            id: self.stored.origins.len() as i64 + 1,
            log: self.log,
            system_identifier: self.place.system_identifier as i64,
            database_oid: self.place.database.into(),
            timeline: self.place.timeline.into(),
            old_log: Some(old),
            old_size: self.tree.size() as i64,
            old_root: self.tree.root().to_vec(),
            at: self.now,
            cause: "another timeline".into(),
            acknowledgement: None,
        });
        self.restart(keys, false);
        self.tell_of_origin(keys);
    }

    /// The row that tells that the last origin began.
    fn tell_of_origin(&mut self, keys: &Keys) {
        let origin = self.stored.origins.last().unwrap().clone();
        let from = origin.old_log.map(|old| format!(", goes on from log {old}"));
        let root = base16ct::lower::encode_string(&origin.old_root);
        let row = self.write(None);
        row.event = "audit_origin_begun".into();
        row.reason = Some(format!(
            "log {}{} at size {}, root {root}: {}",
            origin.log,
            from.unwrap_or_default(),
            origin.old_size,
            origin.cause
        ));
        authenticate(row, keys);
    }

    /// Somebody says why the log goes on elsewhere.
    pub fn acknowledge(&mut self, keys: &Keys) {
        let log = self.log;
        let row = self.write(None);
        row.event = "audit_fork_acknowledged".into();
        row.reason = Some(format!("restored (log {log})"));
        authenticate(row, keys);
        let said = Acknowledgement { at: row.at, by: row.actor.clone(), reason: "restored".into() };
        self.stored.origins.last_mut().unwrap().acknowledgement = Some(said);
    }

    /// A row that is not sealed yet.
    pub fn write(&mut self, keys: Option<&Keys>) -> &mut LogRow {
        self.now += 10_000;
        let number = self.stored.rows.len() as i64;
        let text = |what: &str| Some(format!("{what} {number}"));
        let mut row = LogRow {
            leaf: None,
            // Gaps, as rolled-back transactions leave them.
            id: START + number * 2 - number / 3,
            at: self.now,
            event: ["key_created", "row_updated", "decrypt_failed"][number as usize % 3].into(),
            actor: "app".into(),
            role: "app_owner".into(),
            client_address: (number % 2 == 0).then(|| "10.0.0.1".into()),
            application: Some("psql".into()),
            backend_pid: 4000 + number as i32 % 5,
            transaction_id: (number % 4 != 0).then_some(700 + number as u64),
            tenant: text("tenant"),
            key_id: Some(number + 1),
            reason: text("reason"),
            table_name: text("table"),
            partition_name: text("partition"),
            row_key: Some(format!("{{\"id\": {number}}}")),
            old_row_key: Some(format!("{{\"id\": {}}}", number - 1)),
            changed_columns: Some(vec!["ssn".into(), "name".into()]),
            error_code: Some("KF001".into()),
            value_count: Some(number),
            key_ids: Some(vec![number, number + 1]),
            // Rows of both versions, mixed.
            subject: if number % 3 == 1 { text("subject") } else { None },
            contexts: (number % 4 == 3).then(|| vec![format!("t/{number}"), String::new()]),
            mac: None,
            mac_key_id: None,
        };
        if let Some(keys) = keys {
            authenticate(&mut row, keys);
        }
        self.stored.rows.push(row);
        self.stored.rows.last_mut().unwrap()
    }

    /// Seals what is not sealed, and signs a checkpoint.
    pub fn seal(&mut self, is_final: bool) {
        for row in self.stored.rows.iter_mut().filter(|row| row.leaf.is_none()) {
            row.leaf = Some(self.tree.size() as i64);
            let leaf = leaf_of(row);
            self.tree.append(leaf);
        }
        self.now += 1_000_000;
        let checkpoint =
            Checkpoint::of(&self.log, &self.tree, self.now, self.previous.as_ref(), is_final)
                .unwrap();
        self.previous = Some(checkpoint.hash());
        self.stored.checkpoints.push(StoredCheckpoint {
            id: self.stored.checkpoints.len() as i64 + 1,
            size: self.tree.size() as i64,
            at: self.now,
            root: self.tree.root().to_vec(),
            frontier: self.tree.to_bytes(),
            signer_id: self.stored.signers.len() as i64,
            origin_id: self.stored.origins.len() as i64,
            is_final,
            note: sign_note(&checkpoint.to_text(), &self.key).unwrap(),
        });
    }

    /// Some rows and a checkpoint.
    pub fn write_and_seal(&mut self, rows: usize, keys: &Keys) {
        for _ in 0..rows {
            self.write(Some(keys));
        }
        self.seal(false);
    }
}

pub fn kinds(findings: &[Finding]) -> Vec<FindingKind> {
    findings.iter().map(|finding| finding.kind).collect()
}

pub fn bad(findings: &[Finding]) -> Vec<&Finding> {
    findings.iter().filter(|finding| finding.status() != Status::Ok).collect()
}

/// Random numbers that are the same in each run.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// SplitMix64.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }

    fn index<T>(&mut self, list: &[T]) -> usize {
        self.below(list.len() as u64) as usize
    }

    fn text(&mut self, text: &mut String) {
        match self.below(4) {
            0 => text.push('x'),
            1 => drop(text.pop()),
            2 => *text = text.replacen(|c: char| c.is_ascii_lowercase(), "Z", 1),
            _ => text.clear(),
        }
    }

    fn optional_text(&mut self, text: &mut Option<String>) {
        match text {
            Some(old) if self.below(3) > 0 => self.text(old),
            Some(_) => *text = None,
            None => *text = Some("x".into()),
        }
    }

    fn number(&mut self, number: &mut i64) {
        match self.below(3) {
            0 => *number = number.wrapping_add(1),
            1 => *number ^= 1 << self.below(63),
            _ => *number = number.wrapping_neg(),
        }
    }

    fn optional_number(&mut self, number: &mut Option<i64>) {
        match number {
            Some(old) if self.below(3) > 0 => self.number(old),
            Some(_) => *number = None,
            None => *number = Some(0),
        }
    }

    fn bytes(&mut self, bytes: &mut Vec<u8>) {
        match self.below(8) {
            0 => bytes.push(0),
            1 => bytes.truncate(bytes.len().saturating_sub(1)),
            _ if bytes.is_empty() => bytes.push(0),
            _ => {
                let at = self.index(bytes);
                bytes[at] ^= 1 << self.below(8);
            }
        }
    }
}

/// What a forger does, once.
pub struct Manipulation;

impl Manipulation {
    /// How many kinds of names [`Self::random`] gives.
    pub const KINDS: usize = 17;

    /// Says what it did.
    pub fn random(dice: &mut Dice, stored: &mut Stored) -> String {
        let row = dice.index(&stored.rows);
        let checkpoint = dice.index(&stored.checkpoints);
        match dice.below(20) {
            0..=6 => Self::of_row(dice, stored, row),
            7 => {
                // The tail, with or without the checkpoints over it.
                let count = 1 + dice.index(&stored.rows);
                stored.rows.sort_by_key(|row| row.leaf);
                let kept = stored.rows.len() - count;
                stored.rows.truncate(kept);
                if dice.below(2) == 0 {
                    return format!("cut {count} rows");
                }
                stored.checkpoints.retain(|one| one.size <= kept as i64);
                if let Some(last) = stored.checkpoints.last() {
                    let size = last.size;
                    stored.rows.retain(|row| row.leaf < Some(size));
                }
                if stored.checkpoints.is_empty() {
                    // All of it; but rows are left that no checkpoint covers, or none at all.
                    stored.rows.clear();
                }
                format!("tail of {count} rows cut with its checkpoints")
            }
            8 => {
                if checkpoint + 1 == stored.checkpoints.len() {
                    stored.checkpoints.pop();
                    return "delete_last_checkpoint".into();
                }
                stored.checkpoints.remove(checkpoint);
                format!("delete_checkpoint {checkpoint}")
            }
            9..=12 => {
                let one = &mut stored.checkpoints[checkpoint];
                let column = match dice.below(8) {
                    0 => {
                        dice.number(&mut one.size);
                        "size"
                    }
                    1 => {
                        one.at += (2 + dice.below(1000) as i64) * 60_000_000;
                        "at"
                    }
                    2 => {
                        dice.bytes(&mut one.root);
                        "root"
                    }
                    3 => {
                        dice.bytes(&mut one.frontier);
                        "frontier"
                    }
                    4 => {
                        one.signer_id += 1;
                        "signer_id"
                    }
                    5 => {
                        one.origin_id -= 1;
                        "origin_id"
                    }
                    6 => {
                        one.is_final = !one.is_final;
                        "is_final"
                    }
                    _ => {
                        dice.text(&mut one.note);
                        "note"
                    }
                };
                format!("edit_checkpoint {checkpoint}.{column}")
            }
            13 => {
                let other = dice.index(&stored.checkpoints);
                let copy = stored.checkpoints[other].clone();
                let one = &mut stored.checkpoints[checkpoint];
                match dice.below(3) {
                    0 => one.note = copy.note,
                    1 => (one.root, one.frontier) = (copy.root, copy.frontier),
                    _ => {
                        let id = one.id;
                        *one = copy;
                        one.id = id;
                    }
                }
                format!("exchange_checkpoint {checkpoint} {other}")
            }
            14 => {
                let other = dice.index(&stored.checkpoints);
                let mut copy = stored.checkpoints[other].clone();
                copy.id = 1000;
                stored.checkpoints.push(copy);
                format!("repeat_checkpoint {other}")
            }
            15 => {
                stored.signers.pop();
                "delete_signer".into()
            }
            16 | 17 => {
                let other = SigningKey::generate(&stored.origins[0].log.origin()).ok().unwrap();
                let one = &mut stored.signers[0];
                let column = match dice.below(8) {
                    0 => {
                        one.id += 1;
                        "id"
                    }
                    1 => {
                        one.origin_id += 1;
                        "origin_id"
                    }
                    2 => {
                        one.public_key = other.verifying_key().to_string();
                        "public_key"
                    }
                    3 => {
                        one.introduced_at -= 3_600_000_000;
                        "introduced_at"
                    }
                    4 => {
                        one.introduced_by = "successor".into();
                        "introduced_by"
                    }
                    5 => {
                        one.from_size += 1;
                        "from_size"
                    }
                    6 => {
                        one.is_clean = !one.is_clean;
                        "is_clean"
                    }
                    _ => {
                        dice.text(&mut one.proof);
                        "proof"
                    }
                };
                format!("edit_signer {column}")
            }
            18 => {
                let one = &mut stored.origins[0];
                let column = match dice.below(9) {
                    0 => {
                        one.id += 1;
                        "id"
                    }
                    1 => {
                        one.log.0[dice.below(16) as usize] ^= 1;
                        "log_id"
                    }
                    2 => {
                        one.at += 3_600_000_000;
                        "at"
                    }
                    3 => {
                        dice.text(&mut one.cause);
                        "cause"
                    }
                    4 => {
                        one.old_size += 1;
                        "old_size"
                    }
                    5 => {
                        dice.bytes(&mut one.old_root);
                        "old_root"
                    }
                    6 => {
                        dice.number(&mut one.system_identifier);
                        "system_identifier"
                    }
                    7 => {
                        dice.number(&mut one.timeline);
                        "timeline"
                    }
                    _ => {
                        dice.number(&mut one.database_oid);
                        "database_oid"
                    }
                };
                format!("edit_origin {column}")
            }
            _ => {
                stored.origins.clear();
                "delete_origin".into()
            }
        }
    }

    /// To a sealed row, or by one more.
    pub fn of_row(dice: &mut Dice, stored: &mut Stored, at: usize) -> String {
        let other = dice.index(&stored.rows);
        match dice.below(7) {
            0 => {
                stored.rows.remove(at);
                format!("delete {at}")
            }
            1 => {
                let mut copy = stored.rows[at].clone();
                let what = dice.below(3);
                if what > 0 {
                    copy.id = START - 1;
                }
                if what > 1 {
                    (copy.mac, copy.mac_key_id) = (None, None);
                }
                stored.rows.push(copy);
                format!("insert a copy of {at}, {what}")
            }
            2 => {
                let leaf = stored.rows[other].leaf;
                stored.rows[other].leaf = stored.rows[at].leaf;
                stored.rows[at].leaf = leaf;
                format!("swap {at} and {other}")
            }
            3 => {
                match dice.below(4) {
                    0 => stored.rows[at].leaf = stored.rows[other].leaf,
                    1 => stored.rows[at].leaf = stored.rows[at].leaf.map(|leaf| leaf + 1000),
                    2 => stored.rows[at].leaf = stored.rows[at].leaf.map(|leaf| -leaf - 1),
                    _ => stored.rows[at].leaf = None,
                }
                format!("renumber {at} {:?}", stored.rows[at].leaf)
            }
            4 => {
                let one = stored.rows[at].clone();
                let two = stored.rows[other].clone();
                // All contents, with their MACs, but not their places.
                stored.rows[at] = LogRow { leaf: one.leaf, id: one.id, ..two.clone() };
                stored.rows[other] = LogRow { leaf: two.leaf, id: two.id, ..one };
                format!("exchange {at} and {other}")
            }
            _ => {
                let row = &mut stored.rows[at];
                let column = match dice.below(22) {
                    0 => {
                        dice.number(&mut row.id);
                        "id"
                    }
                    1 => {
                        dice.number(&mut row.at);
                        "at"
                    }
                    2 => {
                        dice.text(&mut row.event);
                        "event"
                    }
                    3 => {
                        dice.text(&mut row.actor);
                        "actor"
                    }
                    4 => {
                        dice.text(&mut row.role);
                        "role"
                    }
                    5 => {
                        dice.optional_text(&mut row.client_address);
                        "client_address"
                    }
                    6 => {
                        dice.optional_text(&mut row.application);
                        "application"
                    }
                    7 => {
                        row.backend_pid ^= 1 << dice.below(31);
                        "backend_pid"
                    }
                    8 => {
                        row.transaction_id = match row.transaction_id {
                            Some(_) if dice.below(2) == 0 => None,
                            Some(id) => Some(id ^ 1),
                            None => Some(0),
                        };
                        "transaction_id"
                    }
                    9 => {
                        dice.optional_text(&mut row.tenant);
                        "tenant"
                    }
                    10 => {
                        dice.optional_number(&mut row.key_id);
                        "key_id"
                    }
                    11 => {
                        dice.optional_text(&mut row.reason);
                        "reason"
                    }
                    12 => {
                        dice.optional_text(&mut row.table_name);
                        "table_name"
                    }
                    13 => {
                        dice.optional_text(&mut row.partition_name);
                        "partition_name"
                    }
                    14 => {
                        dice.optional_text(&mut row.row_key);
                        "row_key"
                    }
                    15 => {
                        dice.optional_text(&mut row.old_row_key);
                        "old_row_key"
                    }
                    16 => {
                        match (&mut row.changed_columns, dice.below(3)) {
                            (Some(names), 0) => names.push(String::new()),
                            (Some(names), 1) => names.reverse(),
                            (names, _) => *names = None,
                        }
                        "changed_columns"
                    }
                    17 => {
                        dice.optional_text(&mut row.error_code);
                        "error_code"
                    }
                    18 => {
                        dice.optional_number(&mut row.value_count);
                        "value_count"
                    }
                    19 => {
                        match (&mut row.key_ids, dice.below(3)) {
                            (Some(ids), 0) => ids.push(0),
                            (Some(ids), 1) => ids.reverse(),
                            (ids, _) => *ids = None,
                        }
                        "key_ids"
                    }
                    20 => {
                        match &mut row.mac {
                            Some(mac) if dice.below(3) > 0 => dice.bytes(mac),
                            Some(_) => (row.mac, row.mac_key_id) = (None, None),
                            None => (row.mac, row.mac_key_id) = (Some(vec![0; 32]), Some(8)),
                        }
                        "mac"
                    }
                    _ => {
                        dice.optional_number(&mut row.mac_key_id);
                        "mac_key_id"
                    }
                };
                format!("edit {at}.{column}")
            }
        }
    }
}
