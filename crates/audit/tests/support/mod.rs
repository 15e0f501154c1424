//! A sealed log as the extension would have written it, in memory: to be manipulated.

#![allow(dead_code, clippy::unwrap_used)]

use std::collections::HashMap;

use fieldcrypt_audit::verify::{
    Anchor, AuditKeys, Finding, FindingKind, Origin, SealedRow, Signer, Status, StoredCheckpoint,
    Summary, Verifier,
};
use fieldcrypt_audit::{
    AuditKey, Checkpoint, Frontier, Hash, LogId, Place, Record, SignerStatement, SigningKey,
    VerifyingKey, leaf_hash, sign_note,
};
use fieldcrypt_envelope::{DataKey, KeyId};

/// 2026-11-23 00:00 UTC.
pub const START: i64 = 1_795_392_000_000_000;

/// A row with its own texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub leaf: Option<i64>,
    pub id: i64,
    pub at: i64,
    pub event: String,
    pub actor: String,
    pub role: String,
    pub client_address: Option<String>,
    pub application: Option<String>,
    pub backend_pid: i32,
    pub transaction_id: Option<u64>,
    pub tenant: Option<String>,
    pub key_id: Option<i64>,
    pub reason: Option<String>,
    pub table_name: Option<String>,
    pub partition_name: Option<String>,
    pub row_key: Option<String>,
    pub old_row_key: Option<String>,
    pub changed_columns: Option<Vec<String>>,
    pub error_code: Option<String>,
    pub value_count: Option<i64>,
    pub key_ids: Option<Vec<i64>>,
    pub mac: Option<Vec<u8>>,
    pub mac_key_id: Option<i64>,
}

impl Row {
    pub fn with_record<R>(&self, f: impl FnOnce(Record<'_>) -> R) -> R {
        let columns: Option<Vec<&str>> =
            self.changed_columns.as_ref().map(|names| names.iter().map(String::as_str).collect());
        f(Record {
            id: self.id,
            at: self.at,
            event: &self.event,
            actor: &self.actor,
            role: &self.role,
            client_address: self.client_address.as_deref(),
            application: self.application.as_deref(),
            backend_pid: self.backend_pid,
            transaction_id: self.transaction_id,
            tenant: self.tenant.as_deref(),
            key_id: self.key_id,
            reason: self.reason.as_deref(),
            table_name: self.table_name.as_deref(),
            partition_name: self.partition_name.as_deref(),
            row_key: self.row_key.as_deref(),
            old_row_key: self.old_row_key.as_deref(),
            changed_columns: columns.as_deref(),
            error_code: self.error_code.as_deref(),
            value_count: self.value_count,
            key_ids: self.key_ids.as_deref(),
        })
    }

    pub fn encoded(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.with_record(|record| record.encode(&mut out));
        out
    }

    pub fn leaf_hash(&self) -> Hash {
        let mac = self.mac.as_ref().map(|mac| mac.as_slice().try_into().unwrap());
        leaf_hash(&self.encoded(), self.mac_key_id.zip(mac))
    }

    /// Writes its MAC.
    pub fn authenticate(&mut self, keys: &Keys) {
        let key = &keys.0[&keys.current()];
        self.mac = Some(key.mac(&self.encoded()).to_vec());
        self.mac_key_id = Some(keys.current());
    }
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
    pub rows: Vec<Row>,
    pub checkpoints: Vec<StoredCheckpoint>,
    pub signers: Vec<Signer>,
    pub origins: Vec<Origin>,
}

impl Stored {
    /// As the database and the offline tool verify: rows by leaf, checkpoints by size and time.
    pub fn verify(&self, anchors: Vec<Anchor>, mut keys: &Keys) -> (Vec<Finding>, Summary) {
        let mut verifier = Verifier::new(self.origins.clone(), &self.signers, anchors, &mut keys);
        let mut rows: Vec<&Row> = self.rows.iter().filter(|row| row.leaf.is_some()).collect();
        rows.sort_by_key(|row| row.leaf);
        let mut checkpoints: Vec<&StoredCheckpoint> = self.checkpoints.iter().collect();
        checkpoints.sort_by_key(|one| (one.size, one.at));
        let mut checkpoints = checkpoints.into_iter().peekable();
        for row in rows {
            while let Some(one) = checkpoints.next_if(|one| Some(one.size) <= row.leaf) {
                verifier.checkpoint(one);
            }
            feed(row, |row| verifier.row(row, &mut keys));
        }
        checkpoints.for_each(|one| verifier.checkpoint(one));
        for row in self.rows.iter().filter(|row| row.leaf.is_none()) {
            feed(row, |row| verifier.unsealed_row(row, false, &mut keys));
        }
        verifier.finish()
    }
}

fn feed(row: &Row, f: impl FnOnce(&SealedRow<'_>)) {
    row.with_record(|record| {
        f(&SealedRow {
            leaf: row.leaf,
            record,
            mac: row.mac.as_deref(),
            mac_key_id: row.mac_key_id,
        });
    });
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
        let origin =
            Origin { id: 1, log, place, old_size: 0, old_root: None, is_acknowledged: true };
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
            public_key: statement.key.to_string(),
            introduced_at: statement.at,
            introduced_by: introduced_by.into(),
            from_size: statement.size as i64,
            is_clean,
            proof,
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
        self.log = LogId::generate().unwrap();
        self.place.timeline += 1;
        self.stored.origins.push(Origin {
            id: self.stored.origins.len() as i64 + 1,
            log: self.log,
            place: self.place,
            old_size: self.tree.size(),
            old_root: Some(self.tree.root()),
            is_acknowledged: false,
        });
        self.restart(keys, false);
    }

    /// A row that is not sealed yet.
    pub fn write(&mut self, keys: Option<&Keys>) -> &mut Row {
        self.now += 10_000;
        let number = self.stored.rows.len() as i64;
        let text = |what: &str| Some(format!("{what} {number}"));
        let mut row = Row {
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
            mac: None,
            mac_key_id: None,
        };
        if let Some(keys) = keys {
            row.authenticate(keys);
        }
        self.stored.rows.push(row);
        self.stored.rows.last_mut().unwrap()
    }

    /// Seals what is not sealed, and signs a checkpoint.
    pub fn seal(&mut self, is_final: bool) {
        for row in self.stored.rows.iter_mut().filter(|row| row.leaf.is_none()) {
            row.leaf = Some(self.tree.size() as i64);
            let leaf = row.leaf_hash();
            self.tree.append(leaf);
        }
        self.now += 1_000_000;
        let checkpoint =
            Checkpoint::of(&self.log, &self.tree, self.now, self.previous.as_ref(), is_final)
                .unwrap();
        self.previous = Some(checkpoint.hash());
        self.stored.checkpoints.push(StoredCheckpoint {
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
