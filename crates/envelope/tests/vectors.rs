//! The frozen vectors of `tests/vectors`. If one of these fails, data in the field no longer opens.
//!
//! The vectors that need a fixed nonce for a wrapped key are checked in `keys::tests`.

#![allow(clippy::unwrap_used)]

mod support;

use fieldcrypt_envelope::ciphertext::{from_text, to_text};
use fieldcrypt_envelope::{Ciphertext, Context, KeyMetadata, MasterKey, Part, place};
use serde_json::Value;
use support::{data_key, key_id, nonce, seal, suite_key_by_hand};

const FIELDS: &str = include_str!("../../../tests/vectors/fields.json");
const CONTEXTS: &str = include_str!("../../../tests/vectors/contexts.json");
const MASTER_KEYS: &str = include_str!("../../../tests/vectors/master-keys.json");
const WRAPPED_KEYS: &str = include_str!("../../../tests/vectors/wrapped-keys.json");

fn vectors(file: &str, count: usize) -> Vec<Value> {
    let vectors: Vec<Value> = serde_json::from_str(file).unwrap();
    assert_eq!(vectors.len(), count, "vectors are added here too, and never taken away");
    vectors
}

fn text<'v>(vector: &'v Value, name: &str) -> &'v str {
    vector[name].as_str().unwrap()
}

fn bytes(vector: &Value, name: &str) -> Vec<u8> {
    base16ct::lower::decode_vec(text(vector, name)).unwrap()
}

fn array<const N: usize>(vector: &Value, name: &str) -> [u8; N] {
    bytes(vector, name).try_into().unwrap()
}

fn id(vector: &Value) -> fieldcrypt_envelope::KeyId {
    key_id(text(vector, "key_id").parse().unwrap())
}

#[test]
fn fields_are_sealed_to_the_same_bytes_and_text() {
    for vector in vectors(FIELDS, 9) {
        let parts: Vec<&str> = (vector["context"].as_array().unwrap().iter())
            .map(|part| part.as_str().unwrap())
            .collect();
        let context = Context::new(&parts).unwrap();
        let dek = array(&vector, "dek");
        let suite_key = suite_key_by_hand(&dek, id(&vector).as_i64());
        assert_eq!(suite_key, array(&vector, "suite_key"));

        let key = data_key(dek);
        let nonce = nonce(array(&vector, "nonce"));
        let plaintext = bytes(&vector, "plaintext");
        let value = seal(&key, id(&vector), &nonce, &context, &plaintext);
        assert_eq!(value, bytes(&vector, "value"), "{}", vector["name"]);
        assert_eq!(to_text(&value), text(&vector, "text"), "{}", vector["name"]);

        let read = from_text(text(&vector, "text").as_bytes()).unwrap();
        let parsed = Ciphertext::parse(&read).ok().unwrap();
        let message_key = key.suite_key(parsed.key_id()).message_key(parsed.nonce());
        assert_eq!(parsed.open(&message_key, &context), Ok(plaintext), "{}", vector["name"]);
    }
}

#[test]
fn contexts_have_the_same_text() {
    for vector in vectors(CONTEXTS, 50) {
        let parts = vector["parts"].as_array().unwrap();
        let uuids: Vec<[u8; 16]> = parts
            .iter()
            .filter(|part| part["type"] == "uuid")
            .map(|part| {
                let digits = text(part, "value").replace('-', "");
                base16ct::lower::decode_vec(digits).unwrap().try_into().unwrap()
            })
            .collect();
        let mut uuid = uuids.iter();
        let parts: Vec<Part<'_>> = parts
            .iter()
            .map(|part| {
                let value = text(part, "value");
                match text(part, "type") {
                    "text" => Part::Text(value.as_bytes()),
                    "integer" => Part::Integer(value.parse().unwrap()),
                    "numeric" => Part::Numeric(value.as_bytes()),
                    "boolean" => Part::Boolean(value == "true"),
                    "uuid" => Part::Uuid(uuid.next().unwrap()),
                    "date" => Part::Date(value.parse().unwrap()),
                    "timestamp" => Part::Timestamp(value.parse().unwrap()),
                    "timestamptz" => Part::Timestamptz(value.parse().unwrap()),
                    other => panic!("{other}"),
                }
            })
            .collect();
        let form = place(&parts, 1 << 20);
        assert_eq!(
            form.as_deref(),
            Some(text(&vector, "context").as_bytes()),
            "{}",
            vector["name"]
        );
    }
}

#[test]
fn master_keys_derive_the_same_fingerprint_and_export_key() {
    for vector in vectors(MASTER_KEYS, 4) {
        let key = MasterKey::derive(&array(&vector, "mek"));
        assert_eq!(key.fingerprint().0, array(&vector, "fingerprint"), "{}", vector["name"]);
        assert_eq!(key.export_key(), &array(&vector, "export_key"), "{}", vector["name"]);
    }
}

#[test]
fn wrapped_keys_open_to_the_same_data_key() {
    for vector in vectors(WRAPPED_KEYS, 4) {
        let metadata = KeyMetadata {
            tenant: text(&vector, "tenant"),
            key_id: id(&vector),
            version: vector["version"].as_u64().unwrap().try_into().unwrap(),
            purpose: text(&vector, "purpose"),
            algorithm: text(&vector, "algorithm"),
        };
        let check = bytes(&vector, "dek_check");
        let key = MasterKey::derive(&array(&vector, "mek"))
            .unwrap_key(&bytes(&vector, "wrapped"), &metadata, &check)
            .ok()
            .unwrap();
        assert_eq!(key.check(id(&vector)), *check, "{}", vector["name"]);
        let expected = data_key(array(&vector, "dek")).check(key_id(1));
        assert_eq!(key.check(key_id(1)), expected, "{}", vector["name"]);
    }
}
