//! What a verification says.

use std::collections::BTreeMap;

/// More findings of one kind are counted, not listed.
const MOST_OF_A_KIND: u64 = 1000;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Status {
    /// Information.
    #[default]
    Ok,
    /// Something could not be checked, or needs somebody's word.
    Warning,
    /// The log is not what was sealed.
    Critical,
}

impl Status {
    /// As column `status` says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $kind:ident = $name:literal, $status:ident;)*) => {
        /// What was found.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum FindingKind {
            $($(#[doc = $doc])* $kind,)*
        }

        impl FindingKind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// As column `finding` says it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }

            /// How bad it is.
            pub fn status(self) -> Status {
                match self { $(Self::$kind => Status::$status,)* }
            }
        }
    };
}

kinds! {
    /// A row whose MAC is not that of its contents, or that has no possible contents.
    RowChanged = "row_changed", Critical;
    /// An id that two rows have.
    IdRepeated = "id_repeated", Critical;
    /// Leaves without rows, followed by rows.
    LeafMissing = "leaf_missing", Critical;
    /// A leaf number that two rows have.
    LeafRepeated = "leaf_repeated", Critical;
    /// Rows that a checkpoint states, and none behind them.
    TailCut = "tail_cut", Critical;
    /// Rows that are not those that a checkpoint was signed over.
    RootMismatch = "root_mismatch", Critical;
    /// Rows with a leaf number that no checkpoint covers, though one was to be expected.
    NotCovered = "not_covered", Critical;
    /// A checkpoint that another one names is not there.
    CheckpointMissing = "checkpoint_missing", Critical;
    /// A checkpoint's columns are not what its note says.
    CheckpointChanged = "checkpoint_changed", Critical;
    /// A checkpoint's note is not signed by the key that it should be signed by.
    CheckpointNotSigned = "checkpoint_not_signed", Critical;
    /// A key that nobody vouches for.
    SignerNotIntroduced = "signer_not_introduced", Critical;
    /// A key's columns are not what its introduction says.
    SignerChanged = "signer_changed", Critical;
    /// A key that another one names is not there.
    SignerMissing = "signer_missing", Critical;
    /// An origin is not what the key that began it says.
    OriginChanged = "origin_changed", Critical;
    /// The log is not the one that is known outside.
    AnchorMismatch = "anchor_mismatch", Critical;
    /// Rows before the beginning are gone, and no retention says so.
    RetentionUnknown = "retention_unknown", Critical;
    /// A key that is vouched for by an audit key that is not there.
    SignerNotChecked = "signer_not_checked", Warning;
    /// Rows whose audit key is not there.
    MacNotChecked = "mac_not_checked", Warning;
    /// What is known outside lies before the beginning of this verification, or behind its end.
    AnchorNotChecked = "anchor_not_checked", Warning;
    /// What happened before a key was introduced may be unsealed.
    UncleanHandover = "unclean_handover", Warning;
    /// The log went on elsewhere, and nobody has said why.
    Fork = "fork", Warning;
    /// A row without a leaf number, older than sealing takes.
    NotSealed = "not_sealed", Warning;
    /// Events that could not be written.
    Gap = "gap", Warning;
    /// Rows without a MAC behind one that has one.
    MacMissing = "mac_missing", Warning;
    /// Rows that were written before there was a key to authenticate them.
    NotAuthenticated = "not_authenticated", Ok;
    /// Rows without a leaf number, just written.
    NotYetSealed = "not_yet_sealed", Ok;
    /// Rows with a leaf number that the next checkpoint will cover.
    NotYetCovered = "not_yet_covered", Ok;
    /// The rows before some checkpoint were not asked for.
    Partial = "partial", Ok;
    /// Rows before the beginning were dropped by the retention.
    Retired = "retired", Ok;
    /// Somebody has said why something is so that would be told otherwise.
    Acknowledged = "acknowledged", Ok;
    /// Nothing that is known outside was given.
    Unanchored = "unanchored", Ok;
    /// The log is the one that is known outside.
    Anchored = "anchored", Ok;
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub kind: FindingKind,
    /// At which leaf.
    pub leaf: Option<u64>,
    /// At the row of which id.
    pub log_id: Option<i64>,
    /// In words.
    pub detail: String,
}

impl Finding {
    /// How bad it is.
    pub fn status(&self) -> Status {
        self.kind.status()
    }
}

/// The findings so far.
#[derive(Debug, Default)]
pub struct Findings {
    list: Vec<Finding>,
    /// Those that somebody's word can end, with their leaves.
    excusable: Vec<(u64, Finding)>,
    counts: BTreeMap<FindingKind, u64>,
}

impl Findings {
    /// One more.
    pub fn push(
        &mut self,
        kind: FindingKind,
        leaf: Option<u64>,
        log_id: Option<i64>,
        detail: impl FnOnce() -> String,
    ) {
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        if *count <= MOST_OF_A_KIND {
            self.list.push(Finding { kind, leaf, log_id, detail: detail() });
        }
    }

    /// One more, about this leaf, which somebody may have acknowledged.
    pub fn push_excusable(
        &mut self,
        kind: FindingKind,
        about: u64,
        leaf: Option<u64>,
        detail: impl FnOnce() -> String,
    ) {
        if (self.excusable.len() as u64) < MOST_OF_A_KIND {
            let detail = detail();
            self.excusable.push((about, Finding { kind, leaf, log_id: None, detail }));
        } else {
            self.push(kind, leaf, None, detail);
        }
    }

    /// What is about leaves below this one was acknowledged: how many findings. The others are told.
    pub fn excuse(&mut self, until: u64) -> u64 {
        let mut excused = 0;
        for (about, finding) in std::mem::take(&mut self.excusable) {
            if about < until {
                excused += 1;
            } else {
                let Finding { kind, leaf, log_id, detail } = finding;
                self.push(kind, leaf, log_id, || detail);
            }
        }
        excused
    }

    /// All of them, with the number of those not listed, and the worst status.
    pub fn finish(mut self) -> (Vec<Finding>, Status) {
        for (kind, count) in &self.counts {
            if let Some(more) = count.checked_sub(MOST_OF_A_KIND).filter(|more| *more > 0) {
                let detail = format!("{more} more of this kind are not listed");
                self.list.push(Finding { kind: *kind, leaf: None, log_id: None, detail });
            }
        }
        let status = self.counts.keys().map(|kind| kind.status()).max().unwrap_or_default();
        (self.list, status)
    }
}
