//! Verification of the sealed log, its export, and proofs of single rows: the tables are read here,
//! judged in `crates/audit`.
//!
//! What is read first is the last checkpoint to be looked at. So whatever is sealed meanwhile is newer
//! than the checkpoints, and never missing below one.

use std::collections::VecDeque;

use fieldcrypt_audit::export::{Begin, SEALING_TAKES, Writer};
use fieldcrypt_audit::verify::{
    Acknowledgement, Anchor, AuditKeys, Finding, Origin, SealedRow, Signer, Status,
    StoredCheckpoint, Summary, Verifier,
};
use fieldcrypt_audit::{Frontier, InclusionProof, LogId, ProofBuilder};
use fieldcrypt_envelope::KeyId;
use pgrx::pg_sys::Datum;
use serde_json::{Value, json};

use super::notes;
use super::row::{OwnedRecord, since_1970};
use crate::error::Error;
use crate::keyring;
use crate::pg::audit_memory;
use crate::pg::call::{Call, sql_functions};
use crate::pg::set::TextSet;
use crate::pg::spi::{self, Parameter};
use crate::pg::tuple::Row;
use crate::pg::values::Varlena;
use crate::pg::{encoding, session};

sql_functions! {
    fieldcrypt_verify_audit_log, pg_finfo_fieldcrypt_verify_audit_log => verify_called;
    fieldcrypt_audit_export, pg_finfo_fieldcrypt_audit_export => export_called;
    fieldcrypt_audit_proof, pg_finfo_fieldcrypt_audit_proof => proof_called;
}

/// `_verify_audit_log(from_time, to_time, anchor)`: findings as JSON, the summary first.
fn verify_called(call: &Call) -> Result<Option<Datum>, Error> {
    let anchors = anchors(call.bytes(2).ok_or(Error::NullArgument("anchor"))?)?;
    let period = Period { from: call.bigint(0), to: call.bigint(1) };
    let signed = last_signed_size();
    let mut keys = Keyring;
    let (mut findings, mut summary) = session::as_owner(|| {
        let extent = Extent::find(&period, &anchors)?;
        let mut verifier = Verifier::new(origins()?, &signers()?, anchors.clone(), &mut keys);
        extent.begin(&mut verifier)?;
        extent.visit(|item| {
            match item {
                Item::Checkpoint(one) => verifier.checkpoint(&one),
                Item::Row(row) => with_row(row, |row| verifier.row(row, &mut keys)),
                Item::Unsealed(row, is_late) => {
                    with_row(row, |row| verifier.unsealed_row(row, is_late, &mut keys));
                }
                Item::Impossible { leaf, id } => {
                    verifier.impossible_row(leaf, id, "a column is NULL that never is");
                }
            }
            Ok(())
        })?;
        Ok(verifier.finish(now()))
    })?;
    if let Some(signed) = signed.filter(|signed| period.to.is_none() && *signed > summary.size) {
        let detail = format!(
            "the last rows are not there: since the server started a checkpoint over {signed} rows was stored, and the last that is there has {}",
            summary.size
        );
        let kind = fieldcrypt_audit::verify::FindingKind::TailCut;
        findings.push(Finding { kind, leaf: Some(summary.size), log_id: None, detail });
        summary.status = Status::Critical;
    }
    let mut lines = vec![json!({
        "status": summary.status.name(),
        "finding": "summary",
        "leaf": summary.size,
        "detail": summarized(&summary),
    })];
    findings.sort_by_key(|one| std::cmp::Reverse(one.status()));
    lines.extend(findings.iter().map(told));
    let text = Value::Array(lines).to_string();
    Ok(Some(Varlena::of(&encoding::from_utf8(text.as_bytes())?)?.into_datum()))
}

fn summarized(summary: &Summary) -> String {
    let root = summary
        .root
        .map_or_else(|| "not that of the rows".into(), |root| keyring::hexadecimal(&root));
    format!(
        "{} sealed rows from leaf {} on, {} not sealed, {} authentic; {} checkpoints, the last over {} rows, root {root}; known from outside: the first {} rows",
        summary.sealed_rows,
        summary.from_leaf,
        summary.unsealed_rows,
        summary.authentic_rows,
        summary.checkpoints,
        summary.size,
        summary.anchored_size
    )
}

fn told(finding: &Finding) -> Value {
    // What a forger wrote into a key's name may not fit the database's encoding.
    let detail: String =
        finding.detail.chars().map(|c| if (' '..='~').contains(&c) { c } else { '?' }).collect();
    json!({
        "status": finding.status().name(),
        "finding": finding.kind.name(),
        "leaf": finding.leaf,
        "log_id": finding.log_id,
        "detail": detail,
    })
}

/// `audit_export(from_time, to_time)`: the log as lines of JSON.
fn export_called(call: &Call) -> Result<Option<Datum>, Error> {
    let lines = TextSet::begin(call)?;
    let period = Period { from: call.bigint(0), to: call.bigint(1) };
    session::as_owner(|| {
        let extent = Extent::find(&period, &[])?;
        let mut writer = Writer::default();
        let push = |line: String| lines.push(line.as_bytes());
        push(writer.header(now(), &extent.begin, extent.is_cut, &origins()?, &signers()?))?;
        if let Some(first) = &extent.first {
            push(writer.checkpoint(first))?;
        }
        extent.visit(|item| match item {
            Item::Checkpoint(one) => push(writer.checkpoint(&one)),
            Item::Row(row) | Item::Unsealed(row, _) => {
                with_row(row, |row| push(writer.row(row)))
            }
            Item::Impossible { leaf, id } => Err(Error::AuditVerification {
                problem: format!(
                    "row {id} of the audit log (leaf {}) can't be exported: a column is NULL that never is",
                    leaf.map_or("none".into(), |leaf| leaf.to_string())
                ),
                hint: "The table was edited by hand: SELECT * FROM fieldcrypt.verify_audit_log().",
            }),
        })?;
        push(writer.end())
    })?;
    Ok(None)
}

/// `audit_proof(log_id)`: that a row is in the log, for who does not trust this database.
fn proof_called(call: &Call) -> Result<Option<Datum>, Error> {
    let id = call.bigint(0).ok_or(Error::NullArgument("log_id"))?;
    let proof = session::as_owner(|| {
        let row = sealed_row(id)?;
        let leaf = row.leaf.and_then(|leaf| u64::try_from(leaf).ok());
        let checkpoint = last_checkpoint(&Period::default())?;
        let (Some(leaf), Some(checkpoint)) = (leaf, checkpoint) else { return Err(not_sealed(id)) };
        let size = checkpoint.size.max(0).cast_unsigned();
        let Some(mut builder) = ProofBuilder::inclusion(leaf, size) else {
            return Err(not_sealed(id));
        };
        // From the nearest edge of the tree that is kept.
        if let Some(edge) = edge_before(leaf)? {
            builder.begin(&edge);
        }
        let mut encoded = Vec::new();
        each_sealed(builder.seen(), size, |item| {
            if let Item::Row(row) = item {
                row.encode(&mut encoded);
                while builder.seen() < row.leaf.unwrap_or_default().max(0).cast_unsigned() {
                    builder.push([0; 32]);
                }
                builder.push(row.leaf_hash(&encoded));
            }
            Ok(())
        })?;
        let path = builder.finish().unwrap_or_default();
        let key = signer_key(checkpoint.signer_id)?;
        let proof = with_row(&row, |row| InclusionProof::new(row, &path, &checkpoint.note, &key));
        let proves = proof.public_key().is_ok_and(|key| proof.verify(&key).is_ok());
        if proves { Ok(proof) } else { Err(not_provable(id)) }
    })?;
    Ok(Some(Varlena::of(proof.to_json().as_bytes())?.into_datum()))
}

fn not_sealed(id: i64) -> Error {
    Error::AuditVerification {
        problem: format!("row {id} of the audit log is not sealed yet"),
        hint: "Rows are sealed within seconds, where pg_fieldcrypt is preloaded: SELECT * FROM fieldcrypt.audit_status().",
    }
}

fn not_provable(id: i64) -> Error {
    Error::AuditVerification {
        problem: format!("the audit log does not prove its row {id}: it was changed"),
        hint: "SELECT * FROM fieldcrypt.verify_audit_log() says where.",
    }
}

fn anchors(text: &[u8]) -> Result<Vec<Anchor>, Error> {
    Anchor::parse(&notes::from_database(text)).map_err(|_| {
        Error::AuditVerification {
            problem: "the anchor is no public key and no checkpoint".into(),
            hint: "Pass a checkpoint as it was published, its empty line and its signature included, or public keys (name+id+base64), one a line, or keys and then a checkpoint.",
        }
    })
}

/// The keys of purpose `audit` of this database.
struct Keyring;

impl AuditKeys for Keyring {
    fn is_mac_of(&mut self, key_id: i64, message: &[u8], mac: &[u8; 32]) -> Option<bool> {
        let key_id = KeyId::new(key_id)?;
        keyring::with_audit_key(key_id, |key| key.is_mac_of(message, mac)).ok()
    }
}

/// The number of leaves of the last checkpoint that was stored since the server started.
fn last_signed_size() -> Option<u64> {
    let queue = audit_memory::all().find(|queue| queue.database() == session::database())?;
    let status = queue.status();
    (status.checkpoint_at != 0).then_some(status.checkpoint_size)
}

fn now() -> i64 {
    since_1970(session::now())
}

/// What was asked for, in Postgres's time.
#[derive(Debug, Clone, Copy, Default)]
struct Period {
    from: Option<i64>,
    to: Option<i64>,
}

/// What is looked at.
struct Extent {
    begin: Begin,
    /// The checkpoint to begin at.
    first: Option<StoredCheckpoint>,
    /// The last one.
    last: Option<StoredCheckpoint>,
    /// Whether it ends before the log does.
    is_cut: bool,
}

/// What comes, in the order in which it is judged.
enum Item<'a> {
    Checkpoint(StoredCheckpoint),
    Row(&'a OwnedRecord),
    Unsealed(&'a OwnedRecord, bool),
    Impossible { leaf: Option<u64>, id: i64 },
}

impl Extent {
    fn find(period: &Period, anchors: &[Anchor]) -> Result<Self, Error> {
        let last = last_checkpoint(period)?;
        let retired = retired_edge()?;
        // What is known outside is compared, too.
        let size = anchors.iter().filter_map(Anchor::size).min();
        let size = size.and_then(|size| i64::try_from(size).ok()).unwrap_or(i64::MAX);
        let first = match period.from {
            Some(from) => checkpoint_before(from, size)?,
            None => None,
        };
        let first = first.filter(|first| {
            retired.as_ref().is_none_or(|edge| first.size.cast_unsigned() > edge.size())
        });
        let begin = match (&first, retired) {
            (Some(_), _) => Begin::Asked,
            (None, Some(edge)) => Begin::Retired(edge),
            (None, None) => Begin::First,
        };
        Ok(Self { begin, first, last, is_cut: period.to.is_some() })
    }

    fn begin(&self, verifier: &mut Verifier) -> Result<(), Error> {
        if self.is_cut {
            verifier.ends_early();
        }
        if let Begin::Retired(edge) = &self.begin {
            verifier.begin_retired(edge.clone());
        }
        if let Some(first) = &self.first
            && !verifier.begin_at(first)
        {
            return Err(Error::AuditVerification {
                problem: format!(
                    "the verification can't begin at the checkpoint over {} rows: it was changed, or its key is not introduced",
                    first.size
                ),
                hint: "Leave from_time out, to verify from the first row on.",
            });
        }
        Ok(())
    }

    /// Checkpoints and rows, merged; then rows that are not sealed.
    fn visit(&self, mut see: impl FnMut(Item<'_>) -> Result<(), Error>) -> Result<(), Error> {
        let mut checkpoints = Checkpoints::after(self.first.as_ref(), self.last.as_ref());
        let from = self.first.as_ref().map_or(0, |first| first.size.max(0).cast_unsigned());
        let to = match &self.last {
            Some(last) if self.is_cut => last.size.max(0).cast_unsigned(),
            None if self.is_cut => 0,
            _ => i64::MAX.cast_unsigned(),
        };
        each_leaf(from, to, |leaf, item| {
            while let Some(one) = checkpoints.next_up_to(leaf)? {
                see(Item::Checkpoint(one))?;
            }
            see(item)
        })?;
        while let Some(one) = checkpoints.next_up_to(i64::MAX)? {
            see(Item::Checkpoint(one))?;
        }
        if self.is_cut {
            return Ok(());
        }
        let late = now() - SEALING_TAKES;
        spi::each_row(
            "SELECT l.* FROM fieldcrypt.audit_log AS l
              WHERE l.leaf IS NULL OR l.leaf OPERATOR(pg_catalog.<) 0
              ORDER BY l.id",
            &[],
            |row| match OwnedRecord::read(row) {
                Ok(record) if record.leaf.is_none() => {
                    see(Item::Unsealed(&record, record.at < late))
                }
                Ok(record) => see(Item::Row(&record)),
                Err(_) => see(impossible(row)),
            },
        )
    }
}

fn impossible(row: &Row<'_>) -> Item<'static> {
    let leaf = row.bigint(super::row::columns::LEAF).ok();
    Item::Impossible {
        leaf: leaf.and_then(|leaf| u64::try_from(leaf).ok()),
        id: row.bigint(super::row::columns::ID).unwrap_or_default(),
    }
}

/// Rows with a leaf number, in the order of these; `see` gets the number, too.
fn each_leaf(
    from: u64,
    to: u64,
    mut see: impl FnMut(i64, Item<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    spi::each_row(
        "SELECT l.* FROM fieldcrypt.audit_log AS l
          WHERE l.leaf OPERATOR(pg_catalog.>=) $1 AND l.leaf OPERATOR(pg_catalog.<) $2
          ORDER BY l.leaf",
        &[Parameter::BigInt(Some(from.cast_signed())), Parameter::BigInt(Some(to.cast_signed()))],
        |row| {
            let leaf = row.bigint(super::row::columns::LEAF)?;
            match OwnedRecord::read(row) {
                Ok(record) => see(leaf, Item::Row(&record)),
                Err(_) => see(leaf, impossible(row)),
            }
        },
    )
}

fn each_sealed(
    from: u64,
    to: u64,
    mut see: impl FnMut(Item<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    each_leaf(from, to, |_, item| see(item))
}

fn with_row<R>(row: &OwnedRecord, work: impl FnOnce(&SealedRow<'_>) -> R) -> R {
    row.with_record(|record| {
        work(&SealedRow {
            leaf: row.leaf,
            record: *record,
            mac: row.mac.as_deref(),
            mac_key_id: row.mac_key_id,
        })
    })
}

fn sealed_row(id: i64) -> Result<OwnedRecord, Error> {
    let mut found = None;
    spi::each_row(
        "SELECT l.* FROM fieldcrypt.audit_log AS l WHERE l.id OPERATOR(pg_catalog.=) $1 LIMIT 1",
        &[Parameter::BigInt(Some(id))],
        |row| {
            found = Some(OwnedRecord::read(row)?);
            Ok(())
        },
    )?;
    found.ok_or_else(|| Error::AuditVerification {
        problem: format!("the audit log has no row {id}"),
        hint: "Column id of fieldcrypt.audit_log says which there are.",
    })
}

/// Checkpoints by size and id, read as they are needed.
struct Checkpoints {
    buffer: VecDeque<StoredCheckpoint>,
    /// Size and id of the last one read, and of the last one to be read.
    read: (i64, i64),
    last: Option<(i64, i64)>,
}

impl Checkpoints {
    const BATCH: i64 = 500;

    fn after(first: Option<&StoredCheckpoint>, last: Option<&StoredCheckpoint>) -> Self {
        let place = |one: &StoredCheckpoint| (one.size, one.id);
        Self {
            buffer: VecDeque::new(),
            read: first.map_or((i64::MIN, i64::MIN), place),
            last: last.map(place),
        }
    }

    /// The next one, if it states at most so many rows.
    fn next_up_to(&mut self, size: i64) -> Result<Option<StoredCheckpoint>, Error> {
        if self.buffer.is_empty() {
            self.fill()?;
        }
        Ok(self.buffer.pop_front_if(|one| one.size <= size))
    }

    fn fill(&mut self) -> Result<(), Error> {
        let Some(last) = self.last.filter(|last| self.read < *last) else { return Ok(()) };
        let buffer = &mut self.buffer;
        spi::each_row(
            "SELECT c.id, c.size, c.at, c.root, c.frontier, c.signer_id, c.origin_id, c.is_final, c.note
               FROM fieldcrypt.audit_checkpoints AS c
              WHERE (c.size OPERATOR(pg_catalog.>) $1 OR c.size OPERATOR(pg_catalog.=) $1 AND c.id OPERATOR(pg_catalog.>) $2)
                AND (c.size OPERATOR(pg_catalog.<) $3 OR c.size OPERATOR(pg_catalog.=) $3 AND c.id OPERATOR(pg_catalog.<=) $4)
              ORDER BY c.size, c.id LIMIT $5",
            &[
                Parameter::BigInt(Some(self.read.0)),
                Parameter::BigInt(Some(self.read.1)),
                Parameter::BigInt(Some(last.0)),
                Parameter::BigInt(Some(last.1)),
                Parameter::BigInt(Some(Self::BATCH)),
            ],
            |row| {
                buffer.push_back(checkpoint(row)?);
                Ok(())
            },
        )?;
        self.read = match self.buffer.back() {
            Some(one) => (one.size, one.id),
            None => last,
        };
        Ok(())
    }
}

/// The last checkpoint of the period.
fn last_checkpoint(period: &Period) -> Result<Option<StoredCheckpoint>, Error> {
    one_checkpoint(
        "SELECT c.id, c.size, c.at, c.root, c.frontier, c.signer_id, c.origin_id, c.is_final, c.note
           FROM fieldcrypt.audit_checkpoints AS c
          WHERE $1 IS NULL OR c.size OPERATOR(pg_catalog.<=) (
                    SELECT pg_catalog.min(e.size) FROM fieldcrypt.audit_checkpoints AS e
                     WHERE e.at OPERATOR(pg_catalog.>=) $1)
             OR NOT EXISTS (SELECT FROM fieldcrypt.audit_checkpoints AS e WHERE e.at OPERATOR(pg_catalog.>=) $1)
          ORDER BY c.size DESC, c.id DESC LIMIT 1",
        &[Parameter::Time(period.to)],
    )
}

/// The last checkpoint that was signed by then and states at most so many rows.
fn checkpoint_before(at: i64, size: i64) -> Result<Option<StoredCheckpoint>, Error> {
    one_checkpoint(
        "SELECT c.id, c.size, c.at, c.root, c.frontier, c.signer_id, c.origin_id, c.is_final, c.note
           FROM fieldcrypt.audit_checkpoints AS c
          WHERE c.at OPERATOR(pg_catalog.<=) $1 AND c.size OPERATOR(pg_catalog.<=) $2
          ORDER BY c.size DESC, c.id DESC LIMIT 1",
        &[Parameter::Time(Some(at)), Parameter::BigInt(Some(size))],
    )
}

fn one_checkpoint(
    statement: &'static str,
    parameters: &[Parameter<'_>],
) -> Result<Option<StoredCheckpoint>, Error> {
    let mut found = None;
    spi::each_row(statement, parameters, |row| {
        found = Some(checkpoint(row)?);
        Ok(())
    })?;
    Ok(found)
}

fn checkpoint(row: &Row<'_>) -> Result<StoredCheckpoint, Error> {
    Ok(StoredCheckpoint {
        id: row.bigint(1)?,
        size: row.bigint(2)?,
        at: since_1970(row.bigint(3)?),
        root: row.bytes(4)?.to_vec(),
        frontier: row.bytes(5)?.to_vec(),
        signer_id: row.bigint(6)?,
        origin_id: row.bigint(7)?,
        is_final: row.boolean(8)?,
        note: notes::from_database(row.bytes(9)?),
    })
}

/// The edge of the tree of the rows that the retention has dropped.
fn retired_edge() -> Result<Option<Frontier>, Error> {
    edge(
        "SELECT r.frontier FROM fieldcrypt.audit_retirements AS r ORDER BY r.size DESC, r.id DESC LIMIT 1",
        &[],
    )
}

/// The largest edge of the tree that does not hold this leaf yet.
fn edge_before(leaf: u64) -> Result<Option<Frontier>, Error> {
    edge(
        "SELECT e.frontier FROM (
            SELECT c.size, c.frontier FROM fieldcrypt.audit_checkpoints AS c
            UNION ALL
            SELECT r.size, r.frontier FROM fieldcrypt.audit_retirements AS r) AS e
          WHERE e.size OPERATOR(pg_catalog.<=) $1 ORDER BY e.size DESC LIMIT 1",
        &[Parameter::BigInt(Some(leaf.cast_signed()))],
    )
}

fn edge(statement: &'static str, parameters: &[Parameter<'_>]) -> Result<Option<Frontier>, Error> {
    let mut found = None;
    spi::each_row(statement, parameters, |row| {
        found = Frontier::from_bytes(row.bytes(1)?).ok();
        Ok(())
    })?;
    Ok(found)
}

fn origins() -> Result<Vec<Origin>, Error> {
    let mut origins = Vec::new();
    spi::each_row(
        "SELECT o.id, o.log_id, o.at, o.cause, o.system_identifier, o.database_oid, o.timeline,
                o.old_log_id, o.old_size, o.old_root, o.acknowledged_at, o.acknowledged_by,
                o.acknowledged_reason
           FROM fieldcrypt.audit_origins AS o ORDER BY o.id",
        &[],
        |row| {
            let said = (row.bigint(11).ok(), row.optional_bytes(12), row.optional_bytes(13));
            let acknowledgement = match said {
                (None, None, None) => None,
                (at, by, reason) => Some(Acknowledgement {
                    at: at.map_or(0, since_1970),
                    by: by.map(encoding::lossy).unwrap_or_default(),
                    reason: reason.map(encoding::lossy).unwrap_or_default(),
                }),
            };
            origins.push(Origin {
                id: row.bigint(1)?,
                log: log_id(row.bytes(2)?),
                at: since_1970(row.bigint(3)?),
                cause: encoding::lossy(row.bytes(4)?),
                system_identifier: row.bigint(5)?,
                database_oid: row.bigint(6)?,
                timeline: row.bigint(7)?,
                old_log: row.optional_bytes(8).map(log_id),
                old_size: row.bigint(9)?,
                old_root: row.bytes(10)?.to_vec(),
                acknowledgement,
            });
            Ok(())
        },
    )?;
    Ok(origins)
}

/// Another length than 16 bytes is no log's.
fn log_id(bytes: &[u8]) -> LogId {
    LogId(bytes.try_into().unwrap_or_default())
}

fn signers() -> Result<Vec<Signer>, Error> {
    let mut signers = Vec::new();
    spi::each_row(
        "SELECT s.id, s.origin_id, s.public_key, s.introduced_at, s.introduced_by, s.from_size,
                s.is_clean, s.proof
           FROM fieldcrypt.audit_signers AS s ORDER BY s.id",
        &[],
        |row| {
            signers.push(Signer {
                id: row.bigint(1)?,
                origin_id: row.bigint(2)?,
                public_key: encoding::lossy(row.bytes(3)?),
                introduced_at: since_1970(row.bigint(4)?),
                introduced_by: encoding::lossy(row.bytes(5)?),
                from_size: row.bigint(6)?,
                is_clean: row.boolean(7)?,
                proof: notes::from_database(row.bytes(8)?),
            });
            Ok(())
        },
    )?;
    Ok(signers)
}

fn signer_key(id: i64) -> Result<String, Error> {
    let mut key = String::new();
    spi::each_row(
        "SELECT s.public_key FROM fieldcrypt.audit_signers AS s WHERE s.id OPERATOR(pg_catalog.=) $1",
        &[Parameter::BigInt(Some(id))],
        |row| {
            key = encoding::lossy(row.bytes(1)?);
            Ok(())
        },
    )?;
    Ok(key)
}
