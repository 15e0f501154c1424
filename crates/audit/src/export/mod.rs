//! The log as lines of JSON: written by the database, checked without it. `docs/audit-format.md`
//! describes the format.
//!
//! The first line is the header; then come checkpoints and rows as a [`Verifier`] takes them, rows that
//! are not sealed, and a last line that says how many there were.

mod lines;

use std::fmt;
use std::io::{self, BufRead, Read};

use fieldcrypt_envelope::to_ascii;

use crate::form::{Hex, Time};
use crate::row::LogRow;
use crate::tree::Frontier;
use crate::verify::{
    Anchor, AuditKeys, Finding, Origin, Signer, StoredCheckpoint, Summary, Verifier,
};

use lines::{Begins, EndLine, HeaderLine, Line, OriginLine};

/// The version of the format.
const VERSION: u32 = 1;
/// Postgres holds no row of a gigabyte; one of the log is far below.
const LONGEST_LINE: u64 = 256 * 1024 * 1024;
/// How long sealing may take before a row that has no leaf number is told of, in microseconds.
pub const SEALING_TAKES: i64 = 300_000_000;
/// The longest `fieldcrypt.audit_seal_interval`, in microseconds.
const LONGEST_SEAL_INTERVAL: i64 = 600_000_000;

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
            signers: signers.to_vec(),
        }))
    }

    /// A checkpoint, by size and id, behind the rows below it.
    pub fn checkpoint(&mut self, one: &StoredCheckpoint) -> String {
        self.checkpoints += 1;
        line(&Line::Checkpoint(one.clone()))
    }

    /// A row, by leaf; rows without one come last.
    pub fn row(&mut self, row: &LogRow) -> String {
        self.rows += 1;
        line(&Line::Row(Box::new(row.clone())))
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
    let mut verifier = Verifier::new(origins, &header.signers, anchors, keys);
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
                match row.leaf {
                    Some(_) => verifier.row(&row, keys),
                    None => verifier.unsealed_row(&row, row.at < late, keys),
                }
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
    // With the longest interval between two checkpoints that can be set: the export does not say which was.
    Ok(verifier.finish(header.exported_at.0.saturating_sub(LONGEST_SEAL_INTERVAL)))
}

fn line(line: &Line) -> String {
    // The types above have nothing that can't be written.
    to_ascii(&serde_json::to_string(line).unwrap_or_default())
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
