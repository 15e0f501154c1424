//! The log as lines of JSON: written by the database, checked without it. `docs/audit-format.md`
//! describes the format.
//!
//! The first line is the header; then come checkpoints and rows as a [`Verifier`] takes them, rows that
//! are not sealed, and a last line that says how many there were.

use std::fmt;
use std::io::{self, BufRead, Read};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::checkpoint::LogId;
use crate::record::Record;
use crate::time;
use crate::tree::Frontier;
use crate::verify::{
    Acknowledgement, Anchor, AuditKeys, Finding, Origin, SealedRow, Signer, StoredCheckpoint,
    Summary, Verifier,
};

/// The version of the format.
const VERSION: u32 = 1;
/// Postgres holds no row of a gigabyte; one of the log is far below.
const LONGEST_LINE: u64 = 256 * 1024 * 1024;
/// How long sealing may take before a row that has no leaf number is told of, in microseconds.
pub const SEALING_TAKES: i64 = 300_000_000;

/// A line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    AuditExport(HeaderLine),
    Checkpoint(CheckpointLine),
    Row(Box<RowLine>),
    End(EndLine),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderLine {
    version: u32,
    exported_at: Time,
    begins: Begins,
    is_cut: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    frontier: Option<Hex>,
    origins: Vec<OriginLine>,
    signers: Vec<SignerLine>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Begins {
    First,
    Asked,
    Retired,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OriginLine {
    id: Number,
    log_id: Hex,
    at: Time,
    cause: String,
    system_identifier: Number,
    database_oid: Number,
    timeline: Number,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    old_log_id: Option<Hex>,
    old_size: Number,
    old_root: Hex,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    acknowledged_at: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    acknowledged_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    acknowledged_reason: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignerLine {
    id: Number,
    origin_id: Number,
    public_key: String,
    introduced_at: Time,
    introduced_by: String,
    from_size: Number,
    is_clean: bool,
    proof: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckpointLine {
    id: Number,
    size: Number,
    at: Time,
    root: Hex,
    frontier: Hex,
    signer_id: Number,
    origin_id: Number,
    is_final: bool,
    note: String,
}

/// A row, also as a proof of inclusion carries it. A column that is left out is NULL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowLine {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    leaf: Option<Number>,
    id: Number,
    at: Time,
    event: String,
    actor: String,
    role: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client_address: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    application: Option<String>,
    backend_pid: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    transaction_id: Option<Unsigned>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_id: Option<Number>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    table_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    partition_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    row_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    old_row_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    changed_columns: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error_code: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value_count: Option<Number>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_ids: Option<Vec<Number>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mac: Option<Hex>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mac_key_id: Option<Number>,
}

impl RowLine {
    /// As the table has it.
    pub fn of(row: &SealedRow<'_>) -> Self {
        let SealedRow { leaf, record, mac, mac_key_id } = row;
        let own = |text: Option<&str>| text.map(str::to_owned);
        Self {
            leaf: leaf.map(Number),
            id: Number(record.id),
            at: Time(record.at),
            event: record.event.into(),
            actor: record.actor.into(),
            role: record.role.into(),
            client_address: own(record.client_address),
            application: own(record.application),
            backend_pid: record.backend_pid,
            transaction_id: record.transaction_id.map(Unsigned),
            tenant: own(record.tenant),
            key_id: record.key_id.map(Number),
            reason: own(record.reason),
            table_name: own(record.table_name),
            partition_name: own(record.partition_name),
            row_key: own(record.row_key),
            old_row_key: own(record.old_row_key),
            changed_columns: record
                .changed_columns
                .map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
            error_code: own(record.error_code),
            value_count: record.value_count.map(Number),
            key_ids: record.key_ids.map(|ids| ids.iter().copied().map(Number).collect()),
            mac: mac.map(|mac| Hex(mac.to_vec())),
            mac_key_id: mac_key_id.map(Number),
        }
    }

    /// Calls `work` with it as a verifier takes it.
    pub fn with_row<R>(&self, work: impl FnOnce(&SealedRow<'_>) -> R) -> R {
        let names: Option<Vec<&str>> =
            self.changed_columns.as_ref().map(|names| names.iter().map(String::as_str).collect());
        let ids: Option<Vec<i64>> =
            self.key_ids.as_ref().map(|ids| ids.iter().map(|id| id.0).collect());
        let number = |number: Option<Number>| number.map(|number| number.0);
        work(&SealedRow {
            leaf: number(self.leaf),
            record: Record {
                id: self.id.0,
                at: self.at.0,
                event: &self.event,
                actor: &self.actor,
                role: &self.role,
                client_address: self.client_address.as_deref(),
                application: self.application.as_deref(),
                backend_pid: self.backend_pid,
                transaction_id: self.transaction_id.map(|id| id.0),
                tenant: self.tenant.as_deref(),
                key_id: number(self.key_id),
                reason: self.reason.as_deref(),
                table_name: self.table_name.as_deref(),
                partition_name: self.partition_name.as_deref(),
                row_key: self.row_key.as_deref(),
                old_row_key: self.old_row_key.as_deref(),
                changed_columns: names.as_deref(),
                error_code: self.error_code.as_deref(),
                value_count: number(self.value_count),
                key_ids: ids.as_deref(),
            },
            mac: self.mac.as_ref().map(|mac| mac.0.as_slice()),
            mac_key_id: number(self.mac_key_id),
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EndLine {
    rows: u64,
    checkpoints: u64,
}

/// What an export begins with.
pub enum Begin {
    /// Leaf 0.
    First,
    /// A checkpoint, which is the first one that follows.
    Asked,
    /// The edge of the tree of the rows that the retention has dropped.
    Retired(Frontier),
}

/// Writes an export, line by line, in ASCII.
#[derive(Default)]
pub struct Writer {
    rows: u64,
    checkpoints: u64,
}

impl Writer {
    /// The first line. `is_cut`: the log goes on behind the export.
    pub fn header(
        &self,
        now: i64,
        begin: &Begin,
        is_cut: bool,
        origins: &[Origin],
        signers: &[Signer],
    ) -> String {
        let (begins, frontier) = match begin {
            Begin::First => (Begins::First, None),
            Begin::Asked => (Begins::Asked, None),
            Begin::Retired(edge) => (Begins::Retired, Some(Hex(edge.to_bytes()))),
        };
        line(&Line::AuditExport(HeaderLine {
            version: VERSION,
            exported_at: Time(now),
            begins,
            is_cut,
            frontier,
            origins: origins.iter().map(OriginLine::of).collect(),
            signers: signers.iter().map(SignerLine::of).collect(),
        }))
    }

    /// A checkpoint, by size and id, behind the rows below it.
    pub fn checkpoint(&mut self, one: &StoredCheckpoint) -> String {
        self.checkpoints += 1;
        line(&Line::Checkpoint(CheckpointLine {
            id: Number(one.id),
            size: Number(one.size),
            at: Time(one.at),
            root: Hex(one.root.clone()),
            frontier: Hex(one.frontier.clone()),
            signer_id: Number(one.signer_id),
            origin_id: Number(one.origin_id),
            is_final: one.is_final,
            note: one.note.clone(),
        }))
    }

    /// A row, by leaf; rows without one come last.
    pub fn row(&mut self, row: &SealedRow<'_>) -> String {
        self.rows += 1;
        line(&Line::Row(Box::new(RowLine::of(row))))
    }

    /// The last line.
    pub fn end(self) -> String {
        line(&Line::End(EndLine { rows: self.rows, checkpoints: self.checkpoints }))
    }
}

/// Verifies an export.
pub fn verify(
    mut input: impl BufRead,
    anchors: Vec<Anchor>,
    keys: &mut dyn AuditKeys,
) -> Result<(Vec<Finding>, Summary), Unusable> {
    let mut number = 0;
    let mut buffer = Vec::new();
    let mut next = |number: &mut u64| read_line(&mut input, &mut buffer, number);
    let Some(Line::AuditExport(header)) = next(&mut number)? else {
        return Err(Unusable::NotAnExport);
    };
    if header.version != VERSION {
        return Err(Unusable::Version(header.version));
    }
    let wrong = |line| Unusable::Line { line };
    let origins: Vec<Origin> =
        header.origins.iter().map(OriginLine::read).collect::<Option<_>>().ok_or(wrong(1))?;
    let signers: Vec<Signer> = header.signers.iter().map(SignerLine::read).collect();
    let mut verifier = Verifier::new(origins, &signers, anchors, keys);
    if header.begins == Begins::Retired {
        let edge = header.frontier.as_ref().and_then(|edge| Frontier::from_bytes(&edge.0).ok());
        verifier.begin_retired(edge.ok_or(wrong(1))?);
    }
    if header.is_cut {
        verifier.ends_early();
    }
    let late = header.exported_at.0.saturating_sub(SEALING_TAKES);
    let (mut rows, mut checkpoints) = (0, 0);
    loop {
        match next(&mut number)? {
            None => return Err(Unusable::Cut),
            Some(Line::AuditExport(_)) => return Err(wrong(number)),
            Some(Line::Checkpoint(one)) => {
                let one = one.read();
                if checkpoints == 0 && header.begins == Begins::Asked {
                    if !verifier.begin_at(&one) {
                        return Err(Unusable::Beginning);
                    }
                } else {
                    verifier.checkpoint(&one);
                }
                checkpoints += 1;
            }
            Some(Line::Row(row)) => {
                rows += 1;
                row.with_row(|row| match row.leaf {
                    Some(_) => verifier.row(row, keys),
                    None => verifier.unsealed_row(row, row.record.at < late, keys),
                });
            }
            Some(Line::End(end)) => {
                if (end.rows, end.checkpoints) != (rows, checkpoints) {
                    return Err(Unusable::Cut);
                }
                break;
            }
        }
    }
    if next(&mut number)?.is_some() {
        return Err(wrong(number));
    }
    Ok(verifier.finish(header.exported_at.0))
}

impl OriginLine {
    fn of(one: &Origin) -> Self {
        let said = one.acknowledgement.as_ref();
        Self {
            id: Number(one.id),
            log_id: Hex(one.log.0.to_vec()),
            at: Time(one.at),
            cause: one.cause.clone(),
            system_identifier: Number(one.system_identifier),
            database_oid: Number(one.database_oid),
            timeline: Number(one.timeline),
            old_log_id: one.old_log.map(|log| Hex(log.0.to_vec())),
            old_size: Number(one.old_size),
            old_root: Hex(one.old_root.clone()),
            acknowledged_at: said.map(|said| Time(said.at)),
            acknowledged_by: said.map(|said| said.by.clone()),
            acknowledged_reason: said.map(|said| said.reason.clone()),
        }
    }

    fn read(&self) -> Option<Origin> {
        let log = |id: &Hex| id.0.as_slice().try_into().ok().map(LogId);
        let acknowledgement =
            match (&self.acknowledged_at, &self.acknowledged_by, &self.acknowledged_reason) {
                (None, None, None) => None,
                (at, by, reason) => Some(Acknowledgement {
                    at: at.as_ref().map_or(0, |at| at.0),
                    by: by.clone().unwrap_or_default(),
                    reason: reason.clone().unwrap_or_default(),
                }),
            };
        Some(Origin {
            id: self.id.0,
            log: log(&self.log_id)?,
            at: self.at.0,
            cause: self.cause.clone(),
            system_identifier: self.system_identifier.0,
            database_oid: self.database_oid.0,
            timeline: self.timeline.0,
            old_log: match &self.old_log_id {
                None => None,
                Some(id) => Some(log(id)?),
            },
            old_size: self.old_size.0,
            old_root: self.old_root.0.clone(),
            acknowledgement,
        })
    }
}

impl SignerLine {
    fn of(one: &Signer) -> Self {
        Self {
            id: Number(one.id),
            origin_id: Number(one.origin_id),
            public_key: one.public_key.clone(),
            introduced_at: Time(one.introduced_at),
            introduced_by: one.introduced_by.clone(),
            from_size: Number(one.from_size),
            is_clean: one.is_clean,
            proof: one.proof.clone(),
        }
    }

    fn read(&self) -> Signer {
        Signer {
            id: self.id.0,
            origin_id: self.origin_id.0,
            public_key: self.public_key.clone(),
            introduced_at: self.introduced_at.0,
            introduced_by: self.introduced_by.clone(),
            from_size: self.from_size.0,
            is_clean: self.is_clean,
            proof: self.proof.clone(),
        }
    }
}

impl CheckpointLine {
    fn read(self) -> StoredCheckpoint {
        StoredCheckpoint {
            id: self.id.0,
            size: self.size.0,
            at: self.at.0,
            root: self.root.0,
            frontier: self.frontier.0,
            signer_id: self.signer_id.0,
            origin_id: self.origin_id.0,
            is_final: self.is_final,
            note: self.note,
        }
    }
}

fn line(line: &Line) -> String {
    // The types above have nothing that can't be written.
    to_ascii(&serde_json::to_string(line).unwrap_or_default())
}

/// JSON with what is not ASCII escaped: whatever the encoding of a database, it can hold it.
pub fn to_ascii(json: &str) -> String {
    if json.is_ascii() {
        return json.to_owned();
    }
    let mut out = String::with_capacity(json.len() + 16);
    for unit in json.encode_utf16() {
        match u8::try_from(unit) {
            Ok(byte) if byte.is_ascii() => out.push(byte.into()),
            _ => out.push_str(&format!("\\u{unit:04x}")),
        }
    }
    out
}

fn read_line(
    input: &mut impl BufRead,
    buffer: &mut Vec<u8>,
    number: &mut u64,
) -> Result<Option<Line>, Unusable> {
    loop {
        buffer.clear();
        let length = input.by_ref().take(LONGEST_LINE).read_until(b'\n', buffer)?;
        if length == 0 {
            return Ok(None);
        }
        *number += 1;
        if !buffer.trim_ascii().is_empty() {
            let wrong = |_| match *number {
                1 => Unusable::NotAnExport,
                line => Unusable::Line { line },
            };
            return serde_json::from_slice(buffer).map(Some).map_err(wrong);
        }
    }
}

/// A 64-bit integer, as a text: not every reader of JSON keeps one exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Number(i64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer, |text| {
            text.parse().ok().filter(|number: &i64| number.to_string() == text)
        })
        .map(Self)
    }
}

/// An unsigned one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unsigned(u64);

impl Serialize for Unsigned {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Unsigned {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer, |text| {
            text.parse().ok().filter(|number: &u64| number.to_string() == text)
        })
        .map(Self)
    }
}

/// Bytes, in hex.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hex(Vec<u8>);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&base16ct::lower::encode_string(&self.0))
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer, |text| base16ct::lower::decode_vec(text).ok()).map(Self)
    }
}

/// A time in RFC 3339, or, where that has no text for it, its microseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Time(i64);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match time::to_text(self.0) {
            Some(text) => serializer.serialize_str(&text),
            None => serializer.collect_str(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer, |text| {
            time::parse(text).or_else(|| {
                let number: i64 = text.parse().ok()?;
                (number.to_string() == text && time::to_text(number).is_none()).then_some(number)
            })
        })
        .map(Self)
    }
}

fn parsed<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, D::Error> {
    let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
    parse(&text).ok_or_else(|| serde::de::Error::custom("not of the expected form"))
}

/// Why an export can't be verified at all. None of it says that the log is good or bad.
#[derive(Debug)]
pub enum Unusable {
    /// It can't be read.
    Io(io::Error),
    /// Its first line is not that of an export.
    NotAnExport,
    /// It was written by a later version.
    Version(u32),
    /// A line of it is no line of an export.
    Line {
        /// Which one, counted from 1.
        line: u64,
    },
    /// Lines are missing.
    Cut,
    /// The checkpoint with which it begins is not one to begin with.
    Beginning,
}

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::NotAnExport => f.write_str("this is no export of an audit log"),
            Self::Version(version) => write!(f, "an export of version {version}, which is not known"),
            Self::Line { line } => write!(f, "line {line} is not one of an export"),
            Self::Cut => f.write_str("the export is not whole: lines are missing"),
            Self::Beginning => f.write_str(
                "the checkpoint with which the export begins is not signed by a key of the log, or was changed: export from the first row on",
            ),
        }
    }
}
