//! Properties that hold for all input, tried with random input.

#![allow(clippy::unwrap_used)]

mod support;

use fieldcrypt_envelope::ciphertext::{from_text, to_text};
use fieldcrypt_envelope::{Ciphertext, Context, DataKey, NotAuthentic, master_key_text};
use proptest::collection::vec;
use proptest::prelude::*;
use support::{data_key, key_id, nonce, seal};

fn open(key: &DataKey, value: &[u8], parts: &[String]) -> Result<Vec<u8>, NotAuthentic> {
    let value = Ciphertext::parse(value).ok().unwrap();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let message_key = key.suite_key(value.key_id()).message_key(value.nonce());
    value.open(&message_key, &Context::new(&parts).unwrap())
}

fn seal_with(key: &DataKey, id: i64, start: [u8; 16], parts: &[String], text: &[u8]) -> Vec<u8> {
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    seal(key, key_id(id), &nonce(start), &Context::new(&parts).unwrap(), text)
}

/// Short parts of few letters, so that different lists often have the same letters.
fn parts() -> impl Strategy<Value = Vec<String>> {
    vec("[a\u{0}\u{1}]{0,3}", 0..4)
}

/// Bytes that get past the first checks more often than chance has it.
fn nearly_a_value() -> impl Strategy<Value = Vec<u8>> {
    (vec(any::<u8>(), 0..120), 0..4usize).prop_map(|(mut bytes, likeness)| {
        for (at, byte) in [0xF9, 0x01, 0x00].into_iter().enumerate().take(likeness) {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_sealed_opens(
        dek: [u8; 32],
        id in 1..=i64::MAX,
        start: [u8; 16],
        parts in vec(any::<String>(), 0..5),
        plaintext in vec(any::<u8>(), 0..600),
    ) {
        let key = data_key(dek);
        let value = seal_with(&key, id, start, &parts, &plaintext);
        prop_assert_eq!(value.len(), plaintext.len() + 42);
        prop_assert_eq!(Ciphertext::parse(&value).ok().unwrap().key_id().as_i64(), id);
        prop_assert_eq!(open(&key, &value, &parts), Ok(plaintext));
    }

    #[test]
    fn what_is_changed_anywhere_does_not_open(
        start: [u8; 16],
        plaintext in vec(any::<u8>(), 0..100),
        at: prop::sample::Index,
        change in 1..=u8::MAX,
    ) {
        let key = data_key([3; 32]);
        let mut value = seal_with(&key, 4, start, &[], &plaintext);
        let at = at.index(value.len());
        value[at] ^= change;
        if Ciphertext::parse(&value).is_ok() {
            prop_assert_eq!(open(&key, &value, &[]), Err(NotAuthentic));
        }
    }

    #[test]
    fn a_value_opens_in_its_own_context_only(one in parts(), two in parts()) {
        let key = data_key([3; 32]);
        let value = seal_with(&key, 4, [5; 16], &one, b"plain");
        prop_assert_eq!(open(&key, &value, &two).is_ok(), one == two);
    }

    #[test]
    fn parsing_never_panics_and_keeps_every_byte(bytes in nearly_a_value()) {
        if let Ok(value) = Ciphertext::parse(&bytes) {
            prop_assert_eq!(value.plaintext_length() + 42, bytes.len());
            prop_assert_eq!(value.nonce().as_bytes(), &bytes[10..26]);
            prop_assert_eq!(&value.key_id().as_i64().to_be_bytes(), &bytes[2..10]);
            prop_assert_eq!(open(&data_key([3; 32]), &bytes, &[]), Err(NotAuthentic));
            prop_assert_eq!(from_text(to_text(&bytes).as_bytes()), Ok(bytes));
        } else {
            prop_assert!(from_text(to_text(&bytes).as_bytes()).is_err());
        }
    }

    #[test]
    fn reading_text_never_panics_and_reads_one_text_only(
        text in prop_oneof![any::<String>(), "fc1:[A-Za-z0-9_=+/ -]{0,120}", "fc1:-QE[A-Za-z0-9_-]{53,120}"]
    ) {
        if let Ok(bytes) = from_text(text.as_bytes()) {
            prop_assert_eq!(to_text(&bytes), text);
        }
    }

    #[test]
    fn reading_master_keys_never_panics(text in prop_oneof![
        vec(any::<u8>(), 0..200),
        "[0-9a-fA-F#=\\n\\r +/]{0,200}".prop_map(String::into_bytes),
        "[A-Za-z0-9+/]{43}=".prop_map(String::into_bytes),
    ]) {
        if let Ok(keys) = master_key_text::parse(&text) {
            prop_assert!((1..=16).contains(&keys.len()));
        }
    }

    #[test]
    fn every_key_is_read_back_from_both_of_its_texts(key: [u8; 32]) {
        use base64ct::{Base64, Encoding};
        let expected = fieldcrypt_envelope::MasterKey::derive(&key).fingerprint();
        for text in [base16ct::lower::encode_string(&key), Base64::encode_string(&key)] {
            let keys = master_key_text::parse(text.as_bytes()).ok().unwrap();
            prop_assert_eq!(keys.len(), 1);
            prop_assert_eq!(keys[0].fingerprint(), expected);
        }
    }
}
