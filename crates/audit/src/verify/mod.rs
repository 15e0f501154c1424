//! Verification of a sealed log: fed once with all that is stored of it, in the order of its leaves,
//! it says what was changed, and where. Memory does not grow with the log.
//!
//! [`Verifier::new`] takes the origins, the signers and what is known outside ([`Anchor`]). Then come
//! the rows and checkpoints, merged: a checkpoint of size n after the rows with leaves below n, if they
//! are there. [`Verifier::finish`] gives the findings and a summary.

mod acknowledged;
mod anchor;
mod checkpoints;
mod finding;
mod ids;
mod origins;
mod rows;
mod signers;

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::checkpoint::LogId;
use crate::form;
use crate::tree::{Frontier, Hash};

pub use anchor::Anchor;
pub use finding::{Finding, FindingKind, Findings, Status};

use acknowledged::Said;
use anchor::AnchorState;
use checkpoints::LastCheckpoint;
use ids::Ids;
use origins::Told;
use rows::Unlisted;
use signers::SignerState;

/// Where keys of purpose `audit` are found.
pub trait AuditKeys {
    /// Whether `mac` is that of the message under the key; `None` if there is no such key.
    fn is_mac_of(&mut self, key_id: i64, message: &[u8], mac: &[u8; 32]) -> Option<bool>;
}

/// No keys: MACs are not checked.
pub struct NoKeys;

impl AuditKeys for NoKeys {
    fn is_mac_of(&mut self, _: i64, _: &[u8], _: &[u8; 32]) -> Option<bool> {
        None
    }
}

/// A row of `audit_origins`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Column `id`: in the order of writing.
    pub id: i64,
    /// Column `log_id`.
    pub log: LogId,
    /// Column `at`, in microseconds since 1970.
    pub at: i64,
    /// Column `cause`.
    pub cause: String,
    /// Column `system_identifier`.
    pub system_identifier: i64,
    /// Column `database_oid`.
    pub database_oid: i64,
    /// Column `timeline`.
    pub timeline: i64,
    /// Column `old_log_id`.
    pub old_log: Option<LogId>,
    /// Column `old_size`: the number of leaves when it began.
    pub old_size: i64,
    /// Column `old_root`.
    pub old_root: Vec<u8>,
    /// Columns `acknowledged_at`, `acknowledged_by` and `acknowledged_reason`.
    pub acknowledgement: Option<Acknowledgement>,
}

/// That a fork is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledgement {
    /// When, in microseconds since 1970.
    pub at: i64,
    /// Who said so.
    pub by: String,
    /// What was said.
    pub reason: String,
}

/// A row of `audit_signers`, and a part of an export's header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signer {
    /// Column `id`: in the order of introduction.
    #[serde(with = "form")]
    pub id: i64,
    /// Column `origin_id`.
    #[serde(with = "form")]
    pub origin_id: i64,
    /// Column `public_key`.
    pub public_key: String,
    /// Column `introduced_at`, in microseconds since 1970.
    #[serde(with = "form::time")]
    pub introduced_at: i64,
    /// Column `introduced_by`.
    pub introduced_by: String,
    /// Column `from_size`.
    #[serde(with = "form")]
    pub from_size: i64,
    /// Column `is_clean`.
    pub is_clean: bool,
    /// Column `proof`.
    pub proof: String,
}

/// A row of `audit_checkpoints`, and a line of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredCheckpoint {
    /// Column `id`: in the order of writing.
    #[serde(with = "form")]
    pub id: i64,
    /// Column `size`.
    #[serde(with = "form")]
    pub size: i64,
    /// Column `at`, in microseconds since 1970.
    #[serde(with = "form::time")]
    pub at: i64,
    /// Column `root`.
    #[serde(with = "form")]
    pub root: Vec<u8>,
    /// Column `frontier`.
    #[serde(with = "form")]
    pub frontier: Vec<u8>,
    /// Column `signer_id`.
    #[serde(with = "form")]
    pub signer_id: i64,
    /// Column `origin_id`.
    #[serde(with = "form")]
    pub origin_id: i64,
    /// Column `is_final`.
    pub is_final: bool,
    /// Column `note`.
    pub note: String,
}

/// What was looked at, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// The leaf at which the verification began.
    pub from_leaf: u64,
    /// The number of leaves that the last checkpoint states.
    pub size: u64,
    /// The root there, if it is that of the rows.
    pub root: Option<Hash>,
    /// Rows with a leaf number.
    pub sealed_rows: u64,
    /// Rows without.
    pub unsealed_rows: u64,
    /// Rows whose MAC is right.
    pub authentic_rows: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// The number of leaves that outside knowledge covers.
    pub anchored_size: u64,
    /// Findings that somebody has said why of.
    pub acknowledged: u64,
    /// The worst of the findings.
    pub status: Status,
}

/// The verification of one log.
pub struct Verifier {
    origins: Vec<Origin>,
    signers: Vec<SignerState>,
    signer_by_id: HashMap<i64, usize>,
    anchors: Vec<AnchorState>,
    /// Roots that the tree must have at some sizes, smallest first.
    expected: VecDeque<(u64, Hash, Expected)>,
    /// The tree of the rows so far; `None` behind damage, until a checkpoint states its edge.
    tree: Option<Frontier>,
    /// The number of the next leaf.
    next: u64,
    /// The leaf at which the verification began, and why there.
    from: u64,
    beginning: Beginning,
    /// The root there.
    first_root: Option<Hash>,
    /// Whether the log goes on behind what was fed.
    is_cut: bool,
    sealing: Sealing,
    /// Leaves from here to `next` have no rows; they are a gap if more rows come, else a cut tail.
    gap: Option<u64>,
    last: Option<LastCheckpoint>,
    /// The size of the last checkpoint whose root is that of the rows.
    good_until: u64,
    /// Its root.
    good_root: Option<Hash>,
    /// Whether rows behind that checkpoint were found missing or repeated.
    is_span_explained: bool,
    /// When the oldest row that no checkpoint covers yet was written.
    oldest_uncovered: Option<i64>,
    unlisted: Unlisted,
    /// Where the verification does not begin at leaf 0: an id behind which rows have a MAC.
    keyed_before: Option<i64>,
    told: Told,
    said: Said,
    ids: Ids,
    findings: Findings,
    summary: Summary,
    buffer: Vec<u8>,
}

/// How far the time of a row may lie from that of what it tells of, in microseconds.
const SAME_TIME: i64 = 60_000_000;

fn is_same_time(a: i64, b: i64) -> bool {
    a.abs_diff(b) <= SAME_TIME.unsigned_abs()
}

/// How long after its rows, and after the checkpoint before it, a checkpoint may take, in microseconds.
const SIGNING_TAKES: i64 = 120_000_000;

fn is_being_signed(at: i64, now: i64) -> bool {
    at > now.saturating_sub(SIGNING_TAKES)
}

/// Why a verification begins where it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// At the first leaf.
    First,
    /// Where it was asked to.
    Asked,
    /// The rows before were dropped by the retention.
    Retired,
}

/// Whether a log is sealed where it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealing {
    /// It is.
    GoesOn,
    /// Not there, or not yet: it is a copy that was not gone on with, a standby's, or has no keys yet. What
    /// waits for its seal was left so by the moment at which it was copied.
    StandsStill,
    /// Nothing seals there.
    Nobody,
}

/// Whose root it is that the tree must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Origin(usize),
    Signer(usize),
    Anchor(usize),
}

impl Verifier {
    /// Checks the signers, and awaits leaf 0. Origins and signers are in the order of their ids.
    pub fn new(
        origins: Vec<Origin>,
        signers: &[Signer],
        anchors: Vec<Anchor>,
        keys: &mut dyn AuditKeys,
    ) -> Self {
        let mut verifier = Self {
            origins,
            signers: Vec::new(),
            signer_by_id: HashMap::new(),
            anchors: Vec::new(),
            expected: VecDeque::new(),
            tree: Some(Frontier::new()),
            next: 0,
            from: 0,
            beginning: Beginning::First,
            first_root: None,
            is_cut: false,
            sealing: Sealing::GoesOn,
            gap: None,
            last: None,
            good_until: 0,
            good_root: None,
            is_span_explained: false,
            oldest_uncovered: None,
            unlisted: Unlisted::default(),
            keyed_before: None,
            told: Told::default(),
            said: Said::default(),
            ids: Ids::default(),
            findings: Findings::default(),
            summary: Summary::default(),
            buffer: Vec::new(),
        };
        verifier.expect_origins();
        verifier.introduce(signers, keys);
        verifier.anchor(anchors);
        verifier.expected.make_contiguous().sort_by_key(|(size, ..)| *size);
        verifier
    }

    /// Says that the log goes on behind what will be fed: it was not asked for to its end.
    pub fn ends_early(&mut self) {
        self.is_cut = true;
    }

    /// Takes what is about leaves below this one for known, as if a row of the log said so already.
    pub fn acknowledge(&mut self, until: u64) {
        self.said.until = until;
    }

    /// Says that the log is not sealed where it was read.
    pub fn sealing(&mut self, sealing: Sealing) {
        self.sealing = sealing;
    }

    /// Roots that were expected at sizes up to this one, which the tree is about to leave behind.
    fn settle(&mut self, size: u64) {
        while let Some((at, root, whose)) = self.expected.pop_front_if(|(at, ..)| *at <= size) {
            let known = match &self.tree {
                Some(tree) if tree.size() == at => Some(tree.root()),
                _ => None,
            };
            match whose {
                Expected::Origin(index) => self.settle_origin(index, at, known, &root),
                Expected::Signer(index) => self.settle_signer(index, at, known, &root),
                Expected::Anchor(index) => self.settle_anchor(index, at, known, &root),
            }
        }
    }

    /// What was found. All rows and checkpoints have been fed. `now` is when they were read, in
    /// microseconds since 1970: what has just been sealed may not be signed yet.
    pub fn finish(mut self, now: i64) -> (Vec<Finding>, Summary) {
        self.settle(self.next);
        self.finish_checkpoints(now);
        self.finish_origins();
        self.finish_signers(now);
        self.finish_anchors();
        self.finish_rows();
        self.finish_acknowledged();
        self.summary.from_leaf = self.from;
        self.summary.size = self.last.as_ref().map_or(0, |last| last.size);
        let (findings, status) = self.findings.finish();
        self.summary.status = status;
        (findings, self.summary)
    }
}
