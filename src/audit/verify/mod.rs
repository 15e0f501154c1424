//! Verification of the sealed log, its export, and proofs of single rows: the tables are read here,
//! judged in `crates/audit`.
//!
//! What is read first is the last checkpoint to be looked at. So whatever is sealed meanwhile is newer
//! than the checkpoints, and never missing below one.

mod settled;
mod tables;

use fieldcrypt_audit::export::{Begin, SEALING_TAKES, Writer};
use fieldcrypt_audit::verify::{
    Anchor, AuditKeys, Finding, FindingKind, Sealing, Status, StoredCheckpoint, Summary, Verifier,
};
use fieldcrypt_audit::{InclusionProof, LogRow, ProofBuilder};
use fieldcrypt_envelope::KeyId;
use serde_json::{Value, json};

use super::row::{self, columns};
use super::{notes, tree};
use crate::error::Error;
use crate::keyring;
use crate::pg::set::TextSet;
use crate::pg::spi::{self, Parameter};
use crate::pg::tuple::Row;
use crate::pg::{audit_memory, clock, security, session, transaction};

pub use tables::last_checkpoint;
use tables::{
    Checkpoints, checkpoint_before, edge_before, origins, retired_edge, sealed_row, signer_key,
    signers,
};

/// Findings as JSON, the summary first.
pub fn verify(period: Period, anchor: &[u8]) -> Result<Value, Error> {
    let anchors = anchors(anchor)?;
    let sealing = security::as_owner(settled::sealing)?;
    let signed = last_signed_size();
    let (mut findings, mut summary) =
        security::as_owner(|| findings(period, &anchors, |verifier| verifier.sealing(sealing)))?;
    if let Some(signed) = signed.filter(|signed| period.to.is_none() && *signed > summary.size) {
        let detail = format!(
            "the last rows are not there: since the server started a checkpoint over {signed} rows was stored, and the last that is there has {}",
            summary.size
        );
        let kind = FindingKind::TailCut;
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
    Ok(Value::Array(lines))
}

/// The findings, of a verifier that was told more. As the owner of the tables.
pub fn findings(
    period: Period,
    anchors: &[Anchor],
    tell: impl FnOnce(&mut Verifier),
) -> Result<(Vec<Finding>, Summary), Error> {
    let mut keys = Keyring;
    let looked_at = clock::unix_time(settled::looked_at());
    let extent = Extent::find(&period, anchors)?;
    let mut verifier = Verifier::new(origins()?, &signers()?, anchors.to_vec(), &mut keys);
    tell(&mut verifier);
    extent.begin(&mut verifier)?;
    extent.visit(|item| {
        match item {
            Item::Checkpoint(one) => verifier.checkpoint(&one),
            Item::Row(row) => verifier.row(row, &mut keys),
            Item::Unsealed(row, is_late) => verifier.unsealed_row(row, is_late, &mut keys),
            Item::Impossible { leaf, id } => {
                verifier.impossible_row(leaf, id, "a column is NULL that never is");
            }
        }
        Ok(())
    })?;
    Ok(verifier.finish(looked_at))
}

fn summarized(summary: &Summary) -> String {
    let rows = format!(
        "{} sealed rows from leaf {} on, {} not sealed, {} authentic",
        summary.sealed_rows, summary.from_leaf, summary.unsealed_rows, summary.authentic_rows,
    );
    // In the first seconds of a log nobody has signed anything yet.
    if summary.checkpoints == 0 && summary.size == 0 {
        return format!("{rows}; no checkpoint yet");
    }
    let root = summary
        .root
        .map_or_else(|| "not that of the rows".into(), |root| keyring::hexadecimal(&root));
    format!(
        "{rows}; {} checkpoints, the last over {} rows, root {root}; known from outside: the first {} rows",
        summary.checkpoints, summary.size, summary.anchored_size
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

/// The log as lines of JSON.
pub fn export(period: Period, lines: &TextSet) -> Result<(), Error> {
    security::as_owner(|| {
        let is_sealed_here = settled::sealing()? == Sealing::GoesOn;
        let extent = Extent::find(&period, &[])?;
        // Where nothing is sealed, what no checkpoint covers will get other numbers, or the same.
        let sealed = if is_sealed_here { u64::MAX } else { extent.size() };
        let mut writer = Writer::default();
        let push = |line: String| lines.push(line.as_bytes());
        push(writer.header(now(), &extent.begin, extent.is_cut, &origins()?, &signers()?))?;
        if let Some(first) = &extent.first {
            push(writer.checkpoint(first))?;
        }
        extent.visit(|item| match item {
            Item::Checkpoint(one) => push(writer.checkpoint(&one)),
            Item::Row(row) if row.leaf.is_some_and(|leaf| leaf.cast_unsigned() >= sealed) => {
                push(writer.row(&LogRow { leaf: None, ..row.clone() }))
            }
            Item::Row(row) | Item::Unsealed(row, _) => push(writer.row(row)),
            Item::Impossible { leaf, id } => Err(Error::AuditVerification {
                problem: format!(
                    "row {id} of the audit log (leaf {}) can't be exported: a column is NULL that never is",
                    leaf.map_or("none".into(), |leaf| leaf.to_string())
                ),
                hint: "The table was edited by hand: SELECT * FROM fieldcrypt.verify_audit_log().",
            }),
        })?;
        push(writer.end())
    })
}

/// That a row is in the log, as JSON, for who does not trust this database.
pub fn proof(id: i64) -> Result<String, Error> {
    security::as_owner(|| {
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
        each_leaf(builder.seen(), size, |_, item| {
            if let Item::Row(row) = item {
                row.encode(&mut encoded);
                let leaf = row.leaf.unwrap_or_default().max(0).cast_unsigned();
                // No number that somebody forged is counted up to.
                if leaf.saturating_sub(builder.seen()) > tree::LARGEST_GAP {
                    return Err(not_provable(id));
                }
                while builder.seen() < leaf {
                    builder.push([0; 32]);
                }
                builder.push(row.leaf_hash(&encoded));
            }
            Ok(())
        })?;
        let path = builder.finish().unwrap_or_default();
        let key = signer_key(checkpoint.signer_id)?;
        let proof = InclusionProof::new(&row, &path, &checkpoint.note, &key);
        let proves = proof.public_key().is_ok_and(|key| proof.verify(&key).is_ok());
        if proves { Ok(proof.to_json()) } else { Err(not_provable(id)) }
    })
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

/// How many leaves checkpoints stated since the server started. A snapshot from before may see fewer.
fn last_signed_size() -> Option<u64> {
    if transaction::has_one_snapshot() {
        return None;
    }
    Some(audit_memory::of_database(session::database())?.sealed_until())
}

fn now() -> i64 {
    clock::unix_time(clock::now())
}

/// What was asked for, in Postgres's time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Period {
    /// From the last checkpoint before it.
    pub from: Option<i64>,
    /// Up to the first checkpoint after it.
    pub to: Option<i64>,
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
    Row(&'a LogRow),
    Unsealed(&'a LogRow, bool),
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

    /// How many leaves checkpoints cover.
    fn size(&self) -> u64 {
        self.last.as_ref().map_or(0, |last| last.size.max(0).cast_unsigned())
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
        let late = clock::unix_time(settled::looked_at()) - SEALING_TAKES;
        // Nobody but this transaction can see its own rows.
        let own = transaction::transaction_id_if_any();
        spi::each_row(
            "SELECT l.* FROM fieldcrypt.audit_log AS l
              WHERE l.leaf IS NULL OR l.leaf OPERATOR(pg_catalog.<) 0
              ORDER BY l.id",
            &[],
            |found| match row::read(found) {
                Ok(row) if row.leaf.is_none() => {
                    let is_own = own.is_some() && row.transaction_id == own;
                    see(Item::Unsealed(&row, row.at < late && !is_own))
                }
                Ok(row) => see(Item::Row(&row)),
                Err(_) => see(impossible(found)),
            },
        )
    }
}

fn impossible(row: &Row<'_>) -> Item<'static> {
    let leaf = row.bigint(columns::LEAF).ok();
    Item::Impossible {
        leaf: leaf.and_then(|leaf| u64::try_from(leaf).ok()),
        id: row.bigint(columns::ID).unwrap_or_default(),
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
          WHERE l.leaf OPERATOR(pg_catalog.>=) $1 AND l.leaf OPERATOR(pg_catalog.<=) $2
          ORDER BY l.leaf",
        &[Parameter::BigInt(Some(from.cast_signed())), Parameter::BigInt(Some(last_leaf(to)))],
        |found| {
            let leaf = found.bigint(columns::LEAF)?;
            match row::read(found) {
                Ok(row) => see(leaf, Item::Row(&row)),
                Err(_) => see(leaf, impossible(found)),
            }
        },
    )
}

/// The last leaf below a number. Below the highest there is comes that itself, too: a number that only a forger
/// gives is not to be missed.
fn last_leaf(to: u64) -> i64 {
    if to == i64::MAX.cast_unsigned() { i64::MAX } else { to.cast_signed() - 1 }
}
