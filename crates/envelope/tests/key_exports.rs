//! Exports of the key table: what was changed is refused, whatever it was.

#![allow(clippy::unwrap_used)]

mod support;

use fieldcrypt_envelope::key_export::{Contents, ExportError, MAX_LENGTH, SealedExport};
use fieldcrypt_envelope::{Fingerprint, KeyMetadata, MasterKey, NotAuthentic, tenant_name};
use serde_json::{Value, json};
use support::{canonical_by_hand, hkdf_by_hand, key_id, wrap_by_hand};

const EXPORTS: &str = include_str!("../../../tests/vectors/key-exports.json");
const ODD_TENANTS: &str = include_str!("../../../tests/vectors/odd-tenants.json");
const OLD: [u8; 32] = [1; 32];
const CURRENT: [u8; 32] = [2; 32];
const STRANGER: [u8; 32] = [3; 32];

fn hex(bytes: &[u8]) -> String {
    base16ct::lower::encode_string(bytes)
}

fn fingerprint(master_key: &[u8; 32]) -> String {
    hex(&hkdf_by_hand(master_key, &[b"mek-fingerprint"])[..16])
}

fn key(id: i64, tenant: &str, version: u32, state: &str, master_key: &[u8; 32]) -> Value {
    let dek = [u8::try_from(id % 256).unwrap(); 32];
    let metadata = KeyMetadata {
        tenant,
        key_id: key_id(id),
        version,
        purpose: "field",
        algorithm: "XAES-256-GCM",
    };
    let wrapped = wrap_by_hand(master_key, &dek, &metadata, &[9; 24]);
    let check = hkdf_by_hand(&dek, &[b"dek-check", &id.to_be_bytes()]);
    let is_destroyed = state == "destroyed";
    json!({
        "key_id": id.to_string(),
        "tenant": tenant,
        "purpose": "field",
        "version": version,
        "state": state,
        "algorithm": "XAES-256-GCM",
        "wrapped_key": (!is_destroyed).then(|| hex(&wrapped)),
        "master_key_fingerprint": fingerprint(master_key),
        "key_check": hex(&check[..16]),
        "created_at": "2026-01-02T03:04:05.000006Z",
        "deactivated_at": (state != "active").then_some("2026-02-02T03:04:05.000000Z"),
        "destroyed_at": is_destroyed.then_some("2026-03-02T03:04:05.000000Z"),
        "suspended_from": (state == "suspended").then_some("active"),
        "destroy_scheduled_at": (state == "compromised").then_some("2026-12-02T03:04:05.000000Z"),
        "destroy_after": (state == "compromised").then_some("2027-03-02T03:04:05.000000Z"),
    })
}

fn contents() -> Value {
    let master_keys = {
        let mut list = [(OLD, false), (CURRENT, true)].map(|(key, is_current)| {
            json!({
                "fingerprint": fingerprint(&key),
                "is_current": is_current,
                "first_used_at": "2026-01-01T00:00:00.000000Z",
            })
        });
        list.sort_by_key(|one| one["fingerprint"].to_string());
        list
    };
    json!({
        "format": "pg_fieldcrypt key export",
        "version": 1,
        "created_at": "2026-11-22T21:10:00.000000Z",
        "states_confirmed": true,
        "database": { "system_identifier": "7360000000000000001", "name": "app" },
        "master_keys": master_keys,
        "keys": [
            key(1, "default", 1, "deactivated", &OLD),
            key(2, "default", 2, "active", &CURRENT),
            key(3, "Praxis Müller 🔑", 1, "suspended", &OLD),
            key(4, "acme", 1, "compromised", &OLD),
            key(5, "acme", 2, "destroyed", &OLD),
        ],
    })
}

fn seal(contents: &Value) -> String {
    let contents = Contents::parse(&contents.to_string()).unwrap();
    let codes = [OLD, CURRENT].map(|key| contents.authenticate(&MasterKey::derive(&key)));
    contents.seal(codes.to_vec()).unwrap()
}

fn check(document: &str, master_key: &[u8; 32]) -> Result<(), NotAuthentic> {
    SealedExport::parse(document).unwrap().check(&MasterKey::derive(master_key))
}

#[test]
fn a_sealed_export_says_what_was_exported() {
    let document = seal(&contents());
    assert!(document.is_ascii());
    for key in [OLD, CURRENT] {
        let mut sealed = SealedExport::parse(&document).unwrap();
        sealed.check(&MasterKey::derive(&key)).unwrap();
        let (read, vouching) = sealed.open().unwrap();
        assert_eq!(read, Contents::parse(&contents().to_string()).unwrap());
        assert_eq!(vouching, [MasterKey::derive(&key).fingerprint()]);
        assert_eq!(Contents::parse(&read.to_json()).unwrap(), read);
        // Every wrapped key is still the one that was wrapped.
        for one in read.keys().iter().filter(|one| one.master_key == vouching[0]) {
            if let Some(wrapped) = &one.wrapped_key {
                let master_key = MasterKey::derive(&key);
                assert!(master_key.unwrap_key(wrapped, &one.metadata(), &one.check).is_ok());
            }
        }
    }
}

#[test]
fn the_text_is_free_where_it_says_nothing() {
    let document: Value = serde_json::from_str(&seal(&contents())).unwrap();
    let pretty = serde_json::to_string_pretty(&document).unwrap();
    assert_eq!(check(&pretty, &OLD), Ok(()));
}

#[test]
fn who_has_no_master_key_of_it_is_told_which() {
    let document = seal(&contents());
    let mut sealed = SealedExport::parse(&document).unwrap();
    assert_eq!(sealed.check(&MasterKey::derive(&STRANGER)), Ok(()));
    let mut needed = [OLD, CURRENT].map(|key| MasterKey::derive(&key).fingerprint());
    needed.sort_unstable();
    assert_eq!(sealed.open().unwrap_err().master_keys, needed);
}

/// Every place of a document that holds something, as a path.
fn places(value: &Value, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, one)| (name.clone(), one)).collect(),
        Value::Array(list) => {
            list.iter().enumerate().map(|(i, one)| (i.to_string(), one)).collect()
        }
        _ => {
            found.push(path.clone());
            return;
        }
    };
    for (name, one) in inner {
        path.push(name);
        places(one, path, found);
        path.pop();
    }
}

fn at<'v>(value: &'v mut Value, path: &[String]) -> &'v mut Value {
    path.iter().fold(value, |value, step| match value {
        Value::Array(list) => &mut list[step.parse::<usize>().unwrap()],
        other => &mut other[step.as_str()],
    })
}

fn other_values(value: &Value) -> Vec<Value> {
    let mut others = vec![Value::Null, json!(true), json!(false), json!(3), json!("")];
    for text in
        ["x", "0", "1", "7", "active", "deactivated", "destroyed", "2020-01-01T00:00:00.000000Z"]
    {
        others.push(json!(text));
    }
    if let Some(text) = value.as_str().filter(|text| !text.is_empty()) {
        let last = if text.ends_with('0') { '1' } else { '0' };
        let mut changed = text.to_owned();
        changed.pop();
        others.push(json!(changed.clone()));
        changed.push(last);
        others.push(json!(changed));
        others.push(json!(format!("{text} ")));
        others.push(json!(text.to_uppercase()));
    }
    others.retain(|other| other != value);
    others
}

#[test]
fn whatever_is_changed_is_malformed_or_not_authentic() {
    let original: Value = serde_json::from_str(&seal(&contents())).unwrap();
    let mut found = Vec::new();
    places(&original, &mut Vec::new(), &mut found);
    assert!(found.len() > 70, "every field of every key");
    let mut not_authentic = 0;
    for path in &found {
        for other in other_values(at(&mut original.clone(), path)) {
            let mut changed = original.clone();
            *at(&mut changed, path) = other.clone();
            let Ok(mut sealed) = SealedExport::parse(&changed.to_string()) else { continue };
            let by_all = [OLD, CURRENT]
                .map(|key| sealed.check(&MasterKey::derive(&key)))
                .iter()
                .all(Result::is_ok);
            let is_complete = sealed.open().is_ok_and(|(_, vouching)| vouching.len() == 2);
            assert!(!(by_all && is_complete), "{path:?} may be changed to {other}");
            not_authentic += 1;
        }
    }
    assert!(not_authentic > 100, "most changes reach the authentication: {not_authentic}");
}

#[test]
fn fields_and_entries_that_are_taken_away_or_added_are_refused() {
    let original: Value = serde_json::from_str(&seal(&contents())).unwrap();
    let refused = |changed: &Value, what: &str| {
        let sealed = SealedExport::parse(&changed.to_string());
        let passes = sealed.is_ok_and(|mut sealed| {
            sealed.check(&MasterKey::derive(&OLD)).is_ok()
                && sealed.check(&MasterKey::derive(&CURRENT)).is_ok()
        });
        assert!(!passes, "{what}");
    };
    for list in ["keys", "master_keys", "authentication"] {
        let length = original[list].as_array().unwrap().len();
        for index in 0..length {
            let mut changed = original.clone();
            changed[list].as_array_mut().unwrap().remove(index);
            refused(&changed, &format!("{list} without {index}"));
            let mut changed = original.clone();
            let twice = changed[list][index].clone();
            changed[list].as_array_mut().unwrap().insert(index, twice);
            refused(&changed, &format!("{list} with {index} twice"));
        }
        for index in 1..length {
            let mut changed = original.clone();
            changed[list].as_array_mut().unwrap().swap(index - 1, index);
            refused(&changed, &format!("{list} with {index} before its time"));
        }
    }
    for path in [
        vec![],
        vec!["database"],
        vec!["master_keys", "0"],
        vec!["keys", "0"],
        vec!["authentication", "0"],
    ] {
        let path: Vec<String> = path.into_iter().map(str::to_owned).collect();
        let mut changed = original.clone();
        at(&mut changed, &path)["later"] = json!(1);
        let unknown = SealedExport::parse(&changed.to_string()).err().unwrap();
        assert!(matches!(unknown, ExportError::Json { .. }), "{path:?}: {unknown:?}");
    }
}

#[test]
fn an_export_of_another_version_or_format_says_so() {
    let mut later: Value = serde_json::from_str(&seal(&contents())).unwrap();
    later["version"] = json!(3);
    later["a field of version 3"] = json!([]);
    let error = |document: &Value| SealedExport::parse(&document.to_string()).err().unwrap();
    assert_eq!(error(&later), ExportError::Version(3));
    later["format"] = json!("another");
    assert_eq!(error(&later), ExportError::Format);
}

/// A document's version is the lowest that has the purposes of its keys: who reads version 1 alone is not given a key that
/// it would take for another kind, and still reads all that has none.
#[test]
fn an_export_with_keys_of_new_purposes_is_of_version_2() {
    for (purpose, version) in [("field", 1), ("audit", 1), ("loose", 2), ("search", 2), ("x", 2)] {
        let mut given = contents();
        given["keys"][1]["purpose"] = json!(purpose);
        for other in [1, 2] {
            given["version"] = json!(other);
            let parsed = Contents::parse(&given.to_string());
            assert_eq!(parsed.is_ok(), other == version, "{purpose}: {other}");
        }
        given["version"] = json!(version);
        let document = seal(&given);
        assert!(document.contains(&format!("\"version\":{version},\"created_at\"")), "{purpose}");
        let mut sealed = SealedExport::parse(&document).unwrap();
        sealed.check(&MasterKey::derive(&OLD)).unwrap();
        // The version is authenticated, too.
        let other = document.replacen(
            &format!("\"version\":{version},"),
            &format!("\"version\":{},", 3 - version),
            1,
        );
        assert!(SealedExport::parse(&other).is_err());
    }
}

#[test]
fn what_is_cut_short_or_repeated_is_no_document() {
    let document = seal(&contents());
    for length in 0..document.len() {
        let error = SealedExport::parse(&document[..length]).err().unwrap();
        assert!(matches!(error, ExportError::Json { .. }), "{length}: {error:?}");
    }
    for twice in [
        document.replacen("\"version\":1", "\"version\":2,\"version\":1", 1),
        document.replacen(
            "\"state\":\"active\"",
            "\"state\":\"destroyed\",\"state\":\"active\"",
            1,
        ),
        document.clone() + &document,
        document.clone() + "x",
    ] {
        let error = SealedExport::parse(&twice).err().unwrap();
        assert!(matches!(error, ExportError::Json { .. }), "{error:?}");
    }
}

#[test]
fn huge_and_deep_texts_are_refused_without_being_built() {
    let long = " ".repeat(MAX_LENGTH + 1);
    assert_eq!(SealedExport::parse(&long).err(), Some(ExportError::TooLong));
    let deep = "[".repeat(1_000_000);
    for text in [deep.clone(), format!("{{\"format\":{deep}"), format!("{{\"x\":{deep}")] {
        assert!(matches!(SealedExport::parse(&text), Err(ExportError::Json { .. })));
    }
}

#[test]
fn contents_that_no_database_has_are_refused() {
    let refused = |change: &dyn Fn(&mut Value), problem: &str| {
        let mut changed = contents();
        change(&mut changed);
        let error = Contents::parse(&changed.to_string()).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}, not {problem}");
    };
    refused(
        &|c| c["keys"][1]["version"] = json!(1),
        "key 2 of the list: its tenant has another key of this version",
    );
    refused(
        &|c| c["keys"][0]["state"] = json!("active"),
        "key 2 of the list: its tenant has another active key",
    );
    refused(&|c| c["keys"][1]["key_id"] = json!("1"), "key 2 of the list: its id is not greater");
    refused(&|c| c["keys"][4]["wrapped_key"] = c["keys"][3]["wrapped_key"].clone(), "destroyed");
    refused(&|c| c["keys"][3]["wrapped_key"] = Value::Null, "a wrapped key is missing");
    refused(
        &|c| c["keys"][3]["master_key_fingerprint"] = json!(fingerprint(&STRANGER)),
        "its master key is not in the list",
    );
    for id in ["0", "-1", "01", "+1", " 1", "9223372036854775808", "18446744073709551616"] {
        refused(&|c| c["keys"][0]["key_id"] = json!(id), "its id is not a positive");
    }
    for version in [0u64, 2_147_483_648] {
        refused(&|c| c["keys"][0]["version"] = json!(version), "its version is out of range");
    }
    for tenant in [String::new(), "x".repeat(4097)] {
        refused(
            &|c| c["keys"][0]["tenant"] = json!(tenant),
            "its tenant's name is empty or too long",
        );
    }
    refused(&|c| c["keys"][0]["tenant"] = json!("a\0b"), "NUL");
    refused(&|c| c["master_keys"][0]["is_current"] = json!(true), "not exactly one master key");
    refused(&|c| c["authentication"] = json!([]), "it is sealed already");
    for moment in [
        "2026-11-22 21:10:00+00",
        "infinity",
        "2026-11-22T21:10:00Z",
        "2026-11-22T21:10:00.000000+00:00",
    ] {
        refused(&|c| c["created_at"] = json!(moment), "created_at");
    }
}

#[test]
fn an_export_is_not_sealed_without_every_master_key_that_wraps() {
    let contents = Contents::parse(&contents().to_string()).unwrap();
    let [old, current] = [OLD, CURRENT].map(|key| contents.authenticate(&MasterKey::derive(&key)));
    assert!(contents.seal(vec![]).is_none());
    assert!(contents.seal(vec![old.clone()]).is_none());
    assert!(contents.seal(vec![current.clone()]).is_none());
    assert!(contents.seal(vec![old.clone(), current.clone(), old.clone()]).is_some());
    assert!(contents.seal(vec![current, old]).is_some());
}

/// Who has one master key can't say anything about keys that another one wraps.
#[test]
fn a_forger_with_one_master_key_is_refused_by_the_other() {
    let mut forged = contents();
    forged["keys"][3]["state"] = json!("deactivated");
    let forged = Contents::parse(&forged.to_string()).unwrap();
    let true_one: Value = serde_json::from_str(&seal(&contents())).unwrap();
    let mut document: Value = serde_json::from_str(&forged.to_json()).unwrap();
    let mine = forged.authenticate(&MasterKey::derive(&OLD));
    let other = forged.authenticate(&MasterKey::derive(&STRANGER));
    assert!(forged.seal(vec![mine, other]).is_none());
    document["authentication"] = true_one["authentication"].clone();
    assert_eq!(check(&document.to_string(), &CURRENT), Err(NotAuthentic));
    assert_eq!(check(&document.to_string(), &OLD), Err(NotAuthentic));
}

#[test]
fn the_frozen_exports_are_authentic_by_hand_and_by_the_core() {
    let vectors: Vec<Value> = serde_json::from_str(EXPORTS).unwrap();
    assert_eq!(vectors.len(), 2, "vectors are added here too, and never taken away");
    for vector in vectors {
        let document = vector["document"].to_string();
        for (mek, message) in vector["meks"].as_array().unwrap().iter().map(|mek| {
            let mek: [u8; 32] =
                base16ct::lower::decode_vec(mek.as_str().unwrap()).unwrap().try_into().unwrap();
            (mek, message_by_hand(&vector["document"]))
        }) {
            assert_eq!(hex(&message), vector["message"].as_str().unwrap());
            let master_key = MasterKey::derive(&mek);
            let mut sealed = SealedExport::parse(&document).unwrap();
            sealed.check(&master_key).unwrap();
            let (read, vouching) = sealed.open().unwrap();
            assert_eq!(vouching, [master_key.fingerprint()]);
            let code = vector["document"]["authentication"]
                .as_array()
                .unwrap()
                .iter()
                .find(|one| one["master_key"] == json!(fingerprint(&mek)))
                .unwrap()["hmac_sha256"]
                .as_str()
                .unwrap();
            assert_eq!(hex(&hmac_by_hand(&hkdf_by_hand(&mek, &[b"export"]), &message)), code);
            assert!(read.keys().iter().all(|one| one.master_key != Fingerprint([0; 16])));
        }
    }
}

#[test]
fn keys_of_tenants_that_could_not_be_made_any_more_are_still_imported() {
    let mut sealed = SealedExport::parse(ODD_TENANTS).unwrap();
    sealed.check(&MasterKey::derive(&OLD)).unwrap();
    let (read, _) = sealed.open().unwrap();
    assert_eq!(read.keys().len(), 8);
    for one in read.keys() {
        assert!(tenant_name::check(&one.tenant).is_err(), "{:?}", one.tenant);
        let wrapped = one.wrapped_key.as_ref().unwrap();
        let master_key = MasterKey::derive(&OLD);
        assert!(master_key.unwrap_key(wrapped, &one.metadata(), &one.check).is_ok());
    }
}

/// The message of docs/format.md, from the JSON alone.
fn message_by_hand(document: &Value) -> Vec<u8> {
    let text = |value: &Value| value.as_str().unwrap_or_default().as_bytes().to_vec();
    let bytes =
        |value: &Value| base16ct::lower::decode_vec(value.as_str().unwrap_or_default()).unwrap();
    let number = |value: &Value| value.as_str().unwrap().parse::<u64>().unwrap().to_be_bytes();
    let yes = |value: &Value| [u8::from(value.as_bool().unwrap())];
    let count = |list: &str| (document[list].as_array().unwrap().len() as u64).to_be_bytes();
    let mut message = canonical_by_hand(&[
        b"pg_fieldcrypt/v1 key export",
        &1u64.to_be_bytes(),
        &text(&document["created_at"]),
        &yes(&document["states_confirmed"]),
        &number(&document["database"]["system_identifier"]),
        &text(&document["database"]["name"]),
        &count("master_keys"),
        &count("keys"),
    ]);
    for one in document["master_keys"].as_array().unwrap() {
        message.extend(canonical_by_hand(&[
            &bytes(&one["fingerprint"]),
            &yes(&one["is_current"]),
            &text(&one["first_used_at"]),
        ]));
    }
    for key in document["keys"].as_array().unwrap() {
        let version = u32::try_from(key["version"].as_u64().unwrap()).unwrap();
        message.extend(canonical_by_hand(&[
            &number(&key["key_id"]),
            &text(&key["tenant"]),
            &text(&key["purpose"]),
            &version.to_be_bytes(),
            &text(&key["state"]),
            &text(&key["algorithm"]),
            &bytes(&key["wrapped_key"]),
            &bytes(&key["master_key_fingerprint"]),
            &bytes(&key["key_check"]),
            &text(&key["created_at"]),
            &text(&key["deactivated_at"]),
            &text(&key["destroyed_at"]),
            &text(&key["suspended_from"]),
            &text(&key["destroy_scheduled_at"]),
            &text(&key["destroy_after"]),
        ]));
    }
    message
}

/// RFC 2104, from SHA-256 alone.
fn hmac_by_hand(key: &[u8; 32], message: &[u8]) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    let pad = |byte: u8| {
        let mut block = [byte; 64];
        block.iter_mut().zip(key).for_each(|(pad, key)| *pad ^= key);
        block
    };
    let inner = Sha256::digest([pad(0x36).as_slice(), message].concat());
    Sha256::digest([pad(0x5c).as_slice(), inner.as_slice()].concat()).to_vec()
}
