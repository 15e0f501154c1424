//! The vectors that need keys of chosen bytes or a wrapping nonce of one's choice.

use serde_json::Value;

use super::*;

fn vectors(file: &str) -> Vec<Value> {
    let vectors: Vec<Value> = serde_json::from_str(file).unwrap();
    assert!(!vectors.is_empty());
    vectors
}

fn data_key(key: [u8; 32]) -> DataKey {
    DataKey { key, purpose: None }
}

fn bytes<const N: usize>(vector: &Value, name: &str) -> [u8; N] {
    let hex = vector[name].as_str().unwrap();
    base16ct::lower::decode_vec(hex).unwrap().try_into().unwrap()
}

#[test]
fn keys_are_wrapped_to_the_same_bytes() {
    for vector in vectors(include_str!("../../../../tests/vectors/wrapped-keys.json")) {
        let text = |name: &str| vector[name].as_str().unwrap();
        let key_id = KeyId::new(text("key_id").parse().unwrap()).unwrap();
        let metadata = KeyMetadata {
            tenant: text("tenant"),
            key_id,
            version: vector["version"].as_u64().unwrap().try_into().unwrap(),
            purpose: text("purpose"),
            algorithm: text("algorithm"),
        };
        let key = data_key(bytes(&vector, "dek"));
        let check = bytes(&vector, "dek_check");
        assert_eq!(key.check(key_id), check, "{}", vector["name"]);
        let master_key = MasterKey::derive(&bytes(&vector, "mek"));
        let wrapped = master_key.wrap_with_nonce(&key, &metadata, bytes(&vector, "nonce"));
        assert_eq!(wrapped, Some(bytes(&vector, "wrapped")), "{}", vector["name"]);
        let opened = master_key.unwrap_key(&bytes::<73>(&vector, "wrapped"), &metadata, &check);
        assert_eq!(opened.ok().unwrap().key, key.key, "{}", vector["name"]);
    }
}

#[test]
fn suite_keys_and_wrapping_keys_are_derived_to_the_same_bytes() {
    for vector in vectors(include_str!("../../../../tests/vectors/fields.json")) {
        let key_id = KeyId::new(vector["key_id"].as_str().unwrap().parse().unwrap()).unwrap();
        let suite_key = data_key(bytes(&vector, "dek")).suite_key(key_id);
        assert_eq!(suite_key.key, bytes(&vector, "suite_key"), "{}", vector["name"]);
        assert_eq!(suite_key.k1, *cmac_subkey(&suite_key.key));
    }
    for vector in vectors(include_str!("../../../../tests/vectors/master-keys.json")) {
        let master_key = MasterKey::derive(&bytes(&vector, "mek"));
        assert_eq!(master_key.wrap, bytes(&vector, "wrap_key"), "{}", vector["name"]);
    }
}

#[test]
fn generated_keys_are_never_zero_and_differ() {
    let (one, two) = (DataKey::generate().ok().unwrap(), DataKey::generate().ok().unwrap());
    assert!(one.key != two.key);
    assert!(one.key != [0; 32] && two.key != [0; 32]);
}

#[test]
fn secrets_are_wiped_on_drop() {
    fn wiped_on_drop<T: ZeroizeOnDrop>() {}
    wiped_on_drop::<MasterKey>();
    wiped_on_drop::<DataKey>();
    wiped_on_drop::<SuiteKey>();
    wiped_on_drop::<MessageKey>();
    wiped_on_drop::<BoundKey>();
    wiped_on_drop::<BoundMessageKey>();
    wiped_on_drop::<TagKey>();
}
