//! The frozen vectors of `tests/vectors`. If one of these fails, data in the field no longer opens.
//!
//! The vectors that need a fixed nonce for a wrapped key are checked in `keys::tests`.

#![allow(clippy::unwrap_used)]

mod support;

use fieldcrypt_envelope::ciphertext::{from_text, to_text};
use fieldcrypt_envelope::{
    AnyCiphertext, Binding, BoundCiphertext, Ciphertext, Context, Domain, Expected, Form, Header,
    KeyMetadata, MasterKey, Part, Place, Session, Stamp, forms, from_any_text, place,
};
use serde_json::Value;
use support::{
    data_key, data_key_for, hkdf_by_hand, key_id, message_key, nonce, open_bound_by_hand, seal,
    seal_bound, suite_key_by_hand,
};

const BOUND_FIELDS: &str = include_str!("../../../tests/vectors/bound-fields.json");
const PLAINTEXTS: &str = include_str!("../../../tests/vectors/plaintexts.json");
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
fn bound_fields_are_sealed_to_the_same_bytes_and_text_and_open() {
    for vector in vectors(BOUND_FIELDS, 24) {
        let name = text(&vector, "name");
        let form = Form::of_name(text(&vector, "form")).unwrap();
        let (dek, plaintext) = (array(&vector, "dek"), bytes(&vector, "plaintext"));
        let is_loose = vector["stamp"].is_object();
        let binding = if is_loose {
            Binding::Loose(stamp(&vector["stamp"]))
        } else {
            let place = Place::new(array(&vector, "salt"), text(&vector, "context"));
            match vector["search"].as_object() {
                None => Binding::Bound(place),
                Some(search) => {
                    let search = &Value::Object(search.clone());
                    let domain = Domain::named(text(search, "domain"), form).unwrap();
                    assert_eq!(*domain.id(), array(&vector, "domain_id"), "{name}");
                    let search_dek = array(search, "dek");
                    let info: &[&[u8]] =
                        &[b"search", &id(search).as_i64().to_be_bytes(), domain.id()];
                    assert_eq!(hkdf_by_hand(&search_dek, info), array(&vector, "tag_key"));
                    let search_key = data_key_for("search", search_dek);
                    let tag_key = search_key.tag_key(id(search), domain).unwrap();
                    let tag = tag_key.tag_of(&plaintext).unwrap();
                    assert_eq!(tag.tag, array(&vector, "search_tag"), "{name}");
                    Binding::Searchable(place, tag)
                }
            }
        };
        let header =
            Header { key_id: id(&vector), nonce: nonce(array(&vector, "nonce")), form, binding };
        let key = data_key_for(if is_loose { "loose" } else { "field" }, dek);
        let value = seal_bound(&key, &header, &plaintext);
        assert_eq!(value, bytes(&vector, "value"), "{name}");
        assert_eq!(value[27..43], bytes(&vector, "place"), "{name}");
        assert_eq!(to_text(&value), text(&vector, "text"), "{name}");
        let suite_key = hkdf_by_hand(&dek, &[b"suite", &value[1..2], &value[2..10]]);
        assert_eq!(suite_key, array(&vector, "suite_key"), "{name}");
        assert_eq!(open_bound_by_hand(&dek, &value).as_ref(), Some(&plaintext), "{name}");

        let read = from_any_text(text(&vector, "text").as_bytes()).unwrap();
        let Ok(AnyCiphertext::Bound(parsed)) = AnyCiphertext::parse(&read) else {
            panic!("{name}")
        };
        assert_eq!(*parsed.header(), header, "{name}");
        let Stamp { database, process, sealed_at } = match header.binding {
            Binding::Loose(stamp) => stamp,
            _ => Stamp { database: 1, process: 1, sealed_at: 1 },
        };
        let session = Session { database, process, started_at: sealed_at };
        let expected = if is_loose {
            Expected::Session(&session)
        } else {
            Expected::Place(text(&vector, "context"))
        };
        for expected in [expected, Expected::Any] {
            assert_eq!(open(&parsed, &key, expected), plaintext, "{name}");
        }
    }
}

fn stamp(stamp: &Value) -> Stamp {
    let number = |name: &str| stamp[name].as_u64().unwrap().try_into().unwrap();
    Stamp {
        database: number("database"),
        process: number("process"),
        sealed_at: text(stamp, "sealed_at").parse().unwrap(),
    }
}

fn open(
    value: &BoundCiphertext<'_>,
    key: &fieldcrypt_envelope::DataKey,
    expected: Expected<'_>,
) -> Vec<u8> {
    let mut out = value.body().to_vec();
    let message_key = message_key(key, value.header()).unwrap();
    value.open_in_place(&message_key, expected, &mut out).unwrap();
    out
}

#[test]
fn plaintexts_have_the_same_bytes_and_fold_to_the_same_bytes() {
    for vector in vectors(PLAINTEXTS, 41) {
        let (name, value) = (text(&vector, "name"), text(&vector, "value"));
        let form = Form::of_name(text(&vector, "form")).unwrap();
        let value = match form {
            Form::Text | Form::Lower | Form::Digits => forms::Value::Text(value),
            Form::Integer => forms::Value::Integer(value.parse().unwrap()),
            Form::Numeric => forms::Value::Numeric(value),
            Form::Date => forms::Value::Date(value.parse().unwrap()),
            Form::Timestamptz => forms::Value::Timestamptz(value.parse().unwrap()),
            Form::Uuid => {
                let digits = value.replace('-', "");
                let bytes = base16ct::lower::decode_vec(digits).unwrap();
                forms::Value::Uuid(bytes.try_into().unwrap())
            }
            Form::Boolean => forms::Value::Boolean(value == "true"),
            Form::Jsonb => forms::Value::Jsonb(value),
        };
        let plaintext = form.encode(&value).ok().unwrap();
        assert_eq!(plaintext.as_bytes(), bytes(&vector, "plaintext"), "{name}");
        assert!(form.decode(plaintext.as_bytes()).is_ok_and(|read| read == value), "{name}");
        let folded = form.fold(plaintext.as_bytes()).ok();
        let expected = vector["folded"].as_str().map(|_| bytes(&vector, "folded"));
        assert_eq!(folded.map(|it| it.as_bytes().to_vec()), expected, "{name}");
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
