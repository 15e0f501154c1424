//! Properties that hold for all input, tried with random input.

#![allow(clippy::unwrap_used)]

mod support;

use fieldcrypt_envelope::bound::OpenError;
use fieldcrypt_envelope::ciphertext::{from_text, to_text};
use fieldcrypt_envelope::forms::{Form, Value};
use fieldcrypt_envelope::{
    AnyCiphertext, Binding, BoundCiphertext, Ciphertext, Context, DataKey, Expected, Header, KeyId,
    NotAuthentic, Place, SearchTag, Stamp, from_any_text, master_key_text,
};
use proptest::collection::vec;
use proptest::prelude::*;
use support::{
    data_key, data_key_for, key_id, message_key, nonce, open_bound_by_hand, seal, seal_bound,
};

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

fn open_bound(value: &[u8], expected: Expected<'_>) -> Result<Vec<u8>, OpenError> {
    let value = BoundCiphertext::parse(value).ok().unwrap();
    let key = data_key_for(value.header().kind().purpose().name(), [3; 32]);
    let mut out = value.body().to_vec();
    value.open_in_place(&message_key(&key, value.header())?, expected, &mut out).map(|()| out)
}

/// Every header that there is.
fn header() -> impl Strategy<Value = Header> {
    let tag = (1..=i64::MAX, any::<[u8; 8]>(), any::<[u8; 16]>());
    (1..=i64::MAX, any::<[u8; 16]>(), 0..10usize, 0..3, any::<[u8; 16]>(), tag).prop_map(
        |(id, start, form, kind, place, (tag_id, domain, tag))| {
            let form = Form::ALL[form];
            let tag = SearchTag { key_id: key_id(tag_id), domain, tag };
            let binding = match kind {
                0 => Binding::Loose(Stamp::from_bytes(&place)),
                1 if form.is_searchable() => Binding::Searchable(Place::from_bytes(&place), tag),
                _ => Binding::Bound(Place::from_bytes(&place)),
            };
            Header { key_id: key_id(id), nonce: nonce(start), form, binding }
        },
    )
}

/// A numeric as Postgres may write it.
const NUMERIC: &str = "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,30})?";

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
    fn what_is_sealed_and_bound_opens(header in header(), plaintext in vec(any::<u8>(), 0..300)) {
        let key = data_key_for(header.kind().purpose().name(), [3; 32]);
        let value = seal_bound(&key, &header, &plaintext);
        prop_assert_eq!(Header::parse(&value), Ok(header));
        prop_assert_eq!(open_bound_by_hand(&[3; 32], &value), Some(plaintext.clone()));
        prop_assert_eq!(open_bound(&value, Expected::Any), Ok(plaintext));
        prop_assert!(open_bound(&value, Expected::Place("elsewhere")).is_err());
        prop_assert_eq!(from_any_text(to_text(&value).as_bytes()), Ok(value));
    }

    #[test]
    fn what_is_bound_and_changed_anywhere_does_not_open(
        header in header(),
        plaintext in vec(any::<u8>(), 0..60),
        at: prop::sample::Index,
        change in 1..=u8::MAX,
    ) {
        let key = data_key_for(header.kind().purpose().name(), [3; 32]);
        let mut value = seal_bound(&key, &header, &plaintext);
        let at = at.index(value.len());
        value[at] ^= change;
        if let Ok(AnyCiphertext::Bound(parsed)) = AnyCiphertext::parse(&value) {
            prop_assert!(open_bound(&value, Expected::Any).is_err());
            // Under the key that it was sealed with, whatever it says now.
            if let Ok(key) = message_key(&key, parsed.header()) {
                let opened = parsed.open_in_place(&key, Expected::Any, &mut parsed.body().to_vec());
                prop_assert!(opened.is_err());
            }
        }
    }

    #[test]
    fn a_value_is_of_its_place_only(salt: [u8; 4], one in "[a/1]{1,3}", two in "[a/1]{1,3}") {
        prop_assert_eq!(Place::new(salt, &one).is_of(&two), one == two);
    }

    #[test]
    fn reading_a_header_never_panics_and_keeps_every_byte(
        mut bytes in vec(any::<u8>(), 0..130),
        suite in 1..4u8,
        form in prop_oneof![1..11u8, 0x81..0x8Bu8],
    ) {
        for (at, byte) in [(0, 0xF9), (1, suite), (2, 0), (26, form), (43, 0)] {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        let parsed = AnyCiphertext::parse(&bytes);
        if let Ok(AnyCiphertext::Bound(value)) = &parsed {
            let header = *value.header();
            prop_assert_eq!(header.length() + value.body().len() + 16, bytes.len());
            prop_assert_eq!(open_bound(&bytes, Expected::Any), Err(OpenError::NotAuthentic));
            let key = data_key_for(header.kind().purpose().name(), [3; 32]);
            let sealed = seal_bound(&key, &header, value.body());
            prop_assert_eq!(&sealed[..header.length()], &bytes[..header.length()]);
        }
        let is_value = parsed.is_ok();
        prop_assert_eq!(from_any_text(to_text(&bytes).as_bytes()).is_ok(), is_value);
    }

    #[test]
    fn every_plaintext_has_one_value_and_every_value_one_plaintext(
        form in 0..10usize,
        bytes in prop_oneof![
            vec(any::<u8>(), 0..17),
            any::<String>().prop_map(String::into_bytes),
            NUMERIC.prop_map(String::into_bytes),
        ],
    ) {
        let form = Form::ALL[form];
        if let Ok(value) = form.decode(&bytes) {
            let again = form.encode(&value).ok().unwrap();
            prop_assert_eq!(again.as_bytes(), &bytes);
            prop_assert_eq!(form.fold(&bytes).is_ok(), form.is_searchable());
        } else {
            prop_assert!(form.fold(&bytes).is_err());
        }
    }

    #[test]
    fn a_text_and_its_lower_case_and_its_fold_fold_alike(text in "[^\\x00]{0,40}") {
        let fold = |form: Form, text: &str| {
            String::from_utf8(form.fold(text.as_bytes()).ok().unwrap().as_bytes().to_vec()).unwrap()
        };
        let lower = fold(Form::Lower, &text);
        prop_assert_eq!(&fold(Form::Lower, &text.to_lowercase()), &lower);
        prop_assert_eq!(&fold(Form::Lower, &lower), &lower);
        let digits = fold(Form::Digits, &text);
        prop_assert_eq!(&fold(Form::Digits, &digits), &digits);
        prop_assert!(digits.bytes().all(|byte| byte.is_ascii_digit()) || digits == text);
    }

    #[test]
    fn numerics_fold_alike_if_they_are_the_same_number(number in NUMERIC, zeros in 0..5usize) {
        if let Ok(Value::Numeric(_)) = Form::Numeric.decode(number.as_bytes()) {
            let point = if number.contains('.') { "" } else { "." };
            let longer = format!("{number}{point}0{}", "0".repeat(zeros));
            let fold = |text: &str| Form::Numeric.fold(text.as_bytes()).ok().unwrap().as_bytes().to_vec();
            prop_assert_eq!(fold(&longer), fold(&number));
            prop_assert_eq!(fold(str::from_utf8(&fold(&longer)).unwrap()), fold(&number));
        }
    }

    #[test]
    fn key_ids_of_tags_are_positive(bytes: [u8; 32]) {
        let id = i64::from_be_bytes(*bytes.first_chunk().unwrap());
        let tag = SearchTag::parse(&bytes);
        prop_assert_eq!(tag.is_ok(), KeyId::new(id).is_some());
        prop_assert!(tag.is_err() || tag.ok().map(|tag| tag.to_bytes()) == Some(bytes));
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
