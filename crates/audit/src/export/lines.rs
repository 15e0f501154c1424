//! The lines of an export, as JSON has them.

use serde::{Deserialize, Serialize};

use crate::checkpoint::LogId;
use crate::form::{Hex, Number, Time};
use crate::row::LogRow;
use crate::verify::{Acknowledgement, Origin, Signer, StoredCheckpoint};

/// A line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "one at a time")]
pub enum Line {
    AuditExport(HeaderLine),
    Checkpoint(StoredCheckpoint),
    Row(Box<LogRow>),
    End(EndLine),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderLine {
    pub version: u32,
    pub exported_at: Time,
    pub begins: Begins,
    pub is_cut: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frontier: Option<Hex>,
    pub origins: Vec<OriginLine>,
    pub signers: Vec<Signer>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Begins {
    First,
    Asked,
    Retired,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OriginLine {
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
pub struct EndLine {
    pub rows: u64,
    pub checkpoints: u64,
}

impl OriginLine {
    pub fn of(one: &Origin) -> Self {
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

    pub fn read(&self) -> Option<Origin> {
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
