//! The lines of an export, as JSON has them.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::checkpoint::LogId;
use crate::record::Record;
use crate::time;
use crate::verify::{Acknowledgement, Origin, SealedRow, Signer, StoredCheckpoint};

/// A line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "one at a time")]
pub enum Line {
    AuditExport(HeaderLine),
    Checkpoint(CheckpointLine),
    Row(Box<RowLine>),
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
    pub signers: Vec<SignerLine>,
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
pub struct SignerLine {
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
pub struct CheckpointLine {
    pub id: Number,
    pub size: Number,
    pub at: Time,
    pub root: Hex,
    pub frontier: Hex,
    pub signer_id: Number,
    pub origin_id: Number,
    pub is_final: bool,
    pub note: String,
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

impl SignerLine {
    pub fn of(one: &Signer) -> Self {
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

    pub fn read(&self) -> Signer {
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
    pub fn read(self) -> StoredCheckpoint {
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

/// A 64-bit integer, as a text: not every reader of JSON keeps one exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Number(pub i64);

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
pub struct Unsigned(pub u64);

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
pub struct Hex(pub Vec<u8>);

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
pub struct Time(pub i64);

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
