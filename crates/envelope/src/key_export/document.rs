//! The JSON of an export: read strictly, written in ASCII.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{
    Authentication, Contents, Database, ExportError, FORMAT, KeyEntry, KeyState, MAX_LENGTH,
    MAX_TENANT_BYTES, MasterKeyEntry, Timestamp,
};
use crate::ascii::to_ascii;
use crate::keys::{Fingerprint, KeyId};

#[derive(Deserialize)]
struct Head {
    format: String,
    version: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: String,
    version: u64,
    created_at: String,
    states_confirmed: bool,
    database: DatabaseObject,
    master_keys: Vec<MasterKeyObject>,
    keys: Vec<KeyObject>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    authentication: Option<Vec<AuthenticationObject>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DatabaseObject {
    system_identifier: String,
    name: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MasterKeyObject {
    fingerprint: String,
    is_current: bool,
    first_used_at: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyObject {
    key_id: String,
    tenant: String,
    purpose: String,
    version: u32,
    state: String,
    algorithm: String,
    wrapped_key: Option<String>,
    master_key_fingerprint: String,
    key_check: String,
    created_at: String,
    deactivated_at: Option<String>,
    destroyed_at: Option<String>,
    suspended_from: Option<String>,
    destroy_scheduled_at: Option<String>,
    destroy_after: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthenticationObject {
    master_key: String,
    hmac_sha256: String,
}

/// Reads a document; whether its authentication is complete and true is not asked.
pub fn read(text: &str) -> Result<(Contents, Option<Vec<Authentication>>), ExportError> {
    if text.len() > MAX_LENGTH {
        return Err(ExportError::TooLong);
    }
    // The version first: what else a later one has is not this one's to judge.
    let head: Head = parse(text)?;
    if head.format != FORMAT {
        return Err(ExportError::Format);
    }
    if !matches!(head.version, 1 | 2) {
        return Err(ExportError::Version(head.version));
    }
    let document: Document = parse(text)?;
    let authentication = document.authentication.map(authentication).transpose()?;
    let master_keys = master_keys(document.master_keys)?;
    let contents = Contents {
        created_at: Timestamp::parse(&document.created_at)
            .ok_or(ExportError::Document("\"created_at\" is not a time in UTC"))?,
        states_confirmed: document.states_confirmed,
        database: Database {
            system_identifier: decimal(&document.database.system_identifier)
                .ok_or(ExportError::Document("\"system_identifier\" is not a number"))?,
            name: document.database.name,
        },
        keys: keys(document.keys, &master_keys)?,
        master_keys,
    };
    if head.version != contents.version() {
        return Err(ExportError::Document("its version is not that of the purposes of its keys"));
    }
    Ok((contents, authentication))
}

fn parse<'t, T: Deserialize<'t>>(text: &'t str) -> Result<T, ExportError> {
    // The parser's own message may quote the text; where it stopped is enough.
    serde_json::from_str(text)
        .map_err(|error| ExportError::Json { line: error.line(), column: error.column() })
}

fn master_keys(objects: Vec<MasterKeyObject>) -> Result<Vec<MasterKeyEntry>, ExportError> {
    let entries = objects
        .into_iter()
        .map(|object| {
            Some(MasterKeyEntry {
                fingerprint: fingerprint(&object.fingerprint)?,
                is_current: object.is_current,
                first_used_at: Timestamp::parse(&object.first_used_at)?,
            })
        })
        .collect::<Option<Vec<_>>>()
        .ok_or(ExportError::Document("a master key is not well-formed"))?;
    if !entries.is_sorted_by(|a, b| a.fingerprint < b.fingerprint) {
        return Err(ExportError::Document("the master keys are not in order"));
    }
    let current = entries.iter().filter(|entry| entry.is_current).count();
    if current != usize::from(!entries.is_empty()) {
        return Err(ExportError::Document("not exactly one master key is current"));
    }
    Ok(entries)
}

fn authentication(objects: Vec<AuthenticationObject>) -> Result<Vec<Authentication>, ExportError> {
    let entries = objects
        .into_iter()
        .map(|object| {
            Some(Authentication {
                master_key: fingerprint(&object.master_key)?,
                code: hexadecimal(&object.hmac_sha256)?,
            })
        })
        .collect::<Option<Vec<_>>>()
        .ok_or(ExportError::Document("an authentication is not well-formed"))?;
    if !entries.is_sorted_by(|a, b| a.master_key < b.master_key) {
        return Err(ExportError::Document("the authentications are not in order"));
    }
    Ok(entries)
}

fn keys(
    objects: Vec<KeyObject>,
    master_keys: &[MasterKeyEntry],
) -> Result<Vec<KeyEntry>, ExportError> {
    let known: HashSet<_> = master_keys.iter().map(|entry| entry.fingerprint).collect();
    let mut entries = Vec::with_capacity(objects.len());
    for (index, object) in objects.into_iter().enumerate() {
        let entry =
            key(object).map_err(|problem| ExportError::Key { position: index + 1, problem })?;
        entries.push(entry);
    }
    let mut versions = HashSet::new();
    let mut active = HashSet::new();
    for (index, entry) in entries.iter().enumerate() {
        let name = (entry.tenant.as_str(), entry.purpose.as_str());
        let problem = if index > 0 && entries[index - 1].key_id >= entry.key_id {
            "its id is not greater than the one before"
        } else if entry.wrapped_key.is_some() && !known.contains(&entry.master_key) {
            "its master key is not in the list"
        } else if !versions.insert((name, entry.version)) {
            "its tenant has another key of this version"
        } else if entry.state == KeyState::Active && !active.insert(name) {
            "its tenant has another active key"
        } else {
            continue;
        };
        return Err(ExportError::Key { position: index + 1, problem });
    }
    Ok(entries)
}

fn key(object: KeyObject) -> Result<KeyEntry, &'static str> {
    let state = KeyState::parse(object.state.as_bytes()).ok_or("its state is unknown")?;
    let wrapped_key = match object.wrapped_key {
        None => None,
        Some(text) => Some(hexadecimal(&text).ok_or("its wrapped key is not 73 bytes in hex")?),
    };
    if wrapped_key.is_none() != (state == KeyState::Destroyed) {
        return Err("a wrapped key is missing, or there for a destroyed key");
    }
    if object.tenant.is_empty() || object.tenant.len() > MAX_TENANT_BYTES {
        return Err("its tenant's name is empty or too long");
    }
    if object.tenant.contains('\0') {
        return Err("its tenant's name has a NUL");
    }
    if !is_name(&object.purpose) || !is_name(&object.algorithm) {
        return Err("its purpose or algorithm is no name");
    }
    // What Postgres's integer holds.
    if object.version == 0 || i32::try_from(object.version).is_err() {
        return Err("its version is out of range");
    }
    let key_id = decimal(&object.key_id).and_then(|id| i64::try_from(id).ok());
    let moment = |text: Option<String>| match text {
        None => Ok(None),
        Some(text) => Timestamp::parse(&text).map(Some).ok_or(NO_TIME),
    };
    Ok(KeyEntry {
        key_id: key_id.and_then(KeyId::new).ok_or("its id is not a positive 63-bit number")?,
        tenant: object.tenant,
        purpose: object.purpose,
        version: object.version,
        state,
        algorithm: object.algorithm,
        wrapped_key,
        master_key: fingerprint(&object.master_key_fingerprint)
            .ok_or("its master key is not 16 bytes in hex")?,
        check: hexadecimal(&object.key_check).ok_or("its check value is not 16 bytes in hex")?,
        created_at: Timestamp::parse(&object.created_at).ok_or(NO_TIME)?,
        deactivated_at: moment(object.deactivated_at)?,
        destroyed_at: moment(object.destroyed_at)?,
        suspended_from: match object.suspended_from {
            None => None,
            Some(name) => {
                Some(KeyState::parse(name.as_bytes()).ok_or("its former state is unknown")?)
            }
        },
        destroy_scheduled_at: moment(object.destroy_scheduled_at)?,
        destroy_after: moment(object.destroy_after)?,
    })
}

const NO_TIME: &str = "one of its times is not in UTC, to the microsecond";

/// Whether every master key that wraps one of the keys is among those that authenticate.
pub fn is_complete(contents: &Contents, authentication: &[Authentication]) -> bool {
    let there: HashSet<_> = authentication.iter().map(|one| one.master_key).collect();
    !there.is_empty()
        && there.len() == authentication.len()
        && contents.authenticating_master_keys().iter().all(|one| there.contains(one))
}

/// Writes a document, without authentication if there is none.
pub fn write(contents: &Contents, authentication: &[Authentication]) -> String {
    let moment = |moment: &Option<Timestamp>| moment.as_ref().map(|one| one.0.clone());
    let document = Document {
        format: FORMAT.into(),
        version: contents.version(),
        created_at: contents.created_at.0.clone(),
        states_confirmed: contents.states_confirmed,
        database: DatabaseObject {
            system_identifier: contents.database.system_identifier.to_string(),
            name: contents.database.name.clone(),
        },
        master_keys: contents
            .master_keys
            .iter()
            .map(|entry| MasterKeyObject {
                fingerprint: entry.fingerprint.to_hex(),
                is_current: entry.is_current,
                first_used_at: entry.first_used_at.0.clone(),
            })
            .collect(),
        keys: contents
            .keys
            .iter()
            .map(|entry| KeyObject {
                key_id: entry.key_id.to_string(),
                tenant: entry.tenant.clone(),
                purpose: entry.purpose.clone(),
                version: entry.version,
                state: entry.state.name().into(),
                algorithm: entry.algorithm.clone(),
                wrapped_key: entry.wrapped_key.map(|key| to_hex(&key)),
                master_key_fingerprint: entry.master_key.to_hex(),
                key_check: to_hex(&entry.check),
                created_at: entry.created_at.0.clone(),
                deactivated_at: moment(&entry.deactivated_at),
                destroyed_at: moment(&entry.destroyed_at),
                suspended_from: entry.suspended_from.map(|state| state.name().into()),
                destroy_scheduled_at: moment(&entry.destroy_scheduled_at),
                destroy_after: moment(&entry.destroy_after),
            })
            .collect(),
        authentication: (!authentication.is_empty()).then(|| {
            authentication
                .iter()
                .map(|one| AuthenticationObject {
                    master_key: one.master_key.to_hex(),
                    hmac_sha256: to_hex(&one.code),
                })
                .collect()
        }),
    };
    // Structures of texts and numbers always have a JSON.
    to_ascii(&serde_json::to_string(&document).unwrap_or_default())
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Digits alone, without a sign or zeros in front, so that a number has one text.
fn decimal(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

fn fingerprint(text: &str) -> Option<Fingerprint> {
    hexadecimal(text).map(Fingerprint)
}

fn hexadecimal<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    let read = base16ct::lower::decode(text, &mut out).ok()?.len();
    (read == N).then_some(out)
}

fn to_hex(bytes: &[u8]) -> String {
    base16ct::lower::encode_string(bytes)
}
