//! Attacks on single values: whatever is changed, nothing opens and no plaintext comes out.

#![allow(clippy::unwrap_used)]

mod support;

use fieldcrypt_envelope::ciphertext::{OVERHEAD, SealError, seal_in_place};
use fieldcrypt_envelope::{Ciphertext, Context, DataKey, KeyId, Malformed, NotAuthentic};
use support::{data_key, key_id, nonce, seal};

const PLAINTEXT: &[u8] = b"078-05-1120, and some more than one block of AES";
const CONTEXT: &[&str] = &["patients.ssn"];

fn key() -> DataKey {
    data_key([0x0D; 32])
}

fn id() -> KeyId {
    key_id(0x0102_0304_0506_0708)
}

fn value() -> Vec<u8> {
    seal_at(*b"ABCDEFGHIJKLMNOP", PLAINTEXT)
}

fn seal_at(start: [u8; 16], plaintext: &[u8]) -> Vec<u8> {
    seal(&key(), id(), &nonce(start), &Context::new(CONTEXT).unwrap(), plaintext)
}

#[derive(Debug, PartialEq)]
enum Refusal {
    Malformed(Malformed),
    NotAuthentic,
}

/// Opens a value under the key whose id it names, as if every id named the same data key.
fn open(key: &DataKey, bytes: &[u8], context: &[&str]) -> Result<Vec<u8>, Refusal> {
    let value = Ciphertext::parse(bytes).map_err(Refusal::Malformed)?;
    let message_key = key.suite_key(value.key_id()).message_key(value.nonce());
    value
        .open(&message_key, &Context::new(context).unwrap())
        .map_err(|NotAuthentic| Refusal::NotAuthentic)
}

#[test]
fn an_untouched_value_opens() {
    assert_eq!(open(&key(), &value(), CONTEXT).as_deref(), Ok(PLAINTEXT));
    assert_eq!(value().len(), PLAINTEXT.len() + OVERHEAD);
    assert_eq!(OVERHEAD, 42);
}

#[test]
fn no_flipped_bit_opens() {
    let value = value();
    for at in 0..value.len() {
        for bit in 0..8 {
            let mut flipped = value.clone();
            flipped[at] ^= 1 << bit;
            assert!(open(&key(), &flipped, CONTEXT).is_err(), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn no_replaced_byte_opens() {
    let value = value();
    for at in 0..value.len() {
        for byte in (0..=u8::MAX).filter(|byte| *byte != value[at]).step_by(5) {
            let mut replaced = value.clone();
            replaced[at] = byte;
            assert!(open(&key(), &replaced, CONTEXT).is_err(), "byte {at} as {byte}");
        }
    }
}

#[test]
fn no_truncation_opens_from_either_end() {
    let value = value();
    for length in 0..value.len() {
        let refusal = open(&key(), &value[..length], CONTEXT).unwrap_err();
        let too_short = refusal == Refusal::Malformed(Malformed::TooShort);
        assert_eq!(too_short, length < OVERHEAD, "{length} bytes");
        assert!(open(&key(), &value[value.len() - length..], CONTEXT).is_err());
    }
}

#[test]
fn no_extension_opens() {
    let value = value();
    for extra in 1..=64 {
        for byte in [0x00, 0xF9, 0xFF] {
            let extended = [value.as_slice(), &vec![byte; extra]].concat();
            assert_eq!(open(&key(), &extended, CONTEXT), Err(Refusal::NotAuthentic));
        }
    }
    let twice = [value.as_slice(), &value].concat();
    assert_eq!(open(&key(), &twice, CONTEXT), Err(Refusal::NotAuthentic));
}

#[test]
fn a_value_relabelled_with_another_key_id_does_not_open_under_either_key() {
    let mut relabelled = value();
    relabelled[2..10].copy_from_slice(&9i64.to_be_bytes());
    let parsed = Ciphertext::parse(&relabelled).ok().unwrap();
    assert_eq!(parsed.key_id(), key_id(9));
    for named in [key_id(9), id()] {
        let message_key = key().suite_key(named).message_key(parsed.nonce());
        let context = Context::new(CONTEXT).unwrap();
        assert_eq!(parsed.open(&message_key, &context), Err(NotAuthentic));
    }
}

#[test]
fn two_values_of_one_block_do_not_open_with_swapped_nonces_bodies_or_tags() {
    let one = seal_at(*b"ABCDEFGHIJKLMNOP", b"one value");
    let two = seal_at(*b"ABCDEFGHIJKLMNOQ", b"two value");
    for part in [10..26, 26..26 + 9, 26 + 9..26 + 9 + 16] {
        let mut swapped = one.clone();
        swapped[part.clone()].copy_from_slice(&two[part]);
        assert_eq!(open(&key(), &swapped, CONTEXT), Err(Refusal::NotAuthentic));
    }
}

#[test]
fn a_value_does_not_open_under_the_message_key_of_another_prefix_or_data_key() {
    let value = value();
    let parsed = Ciphertext::parse(&value).ok().unwrap();
    let context = Context::new(CONTEXT).unwrap();
    let other_prefix = key().suite_key(id()).message_key(&nonce([0; 16]));
    assert_eq!(parsed.open(&other_prefix, &context), Err(NotAuthentic));
    assert_eq!(open(&data_key([0x0E; 32]), &value, CONTEXT), Err(Refusal::NotAuthentic));
}

#[test]
fn no_other_context_opens() {
    let value = value();
    for confused in [
        &[][..],
        &[""],
        &["patients.ssn", ""],
        &["", "patients.ssn"],
        &["patients", "ssn"],
        &["patients.", "ssn"],
        &["patients.ssn\0"],
        &["patients.ssn "],
        &["PATIENTS.SSN"],
        &["patients.dob"],
        &["patients.ssn", "patients.ssn"],
        &["\0\0\0\x0Cpatients.ssn"],
    ] {
        assert_eq!(open(&key(), &value, confused), Err(Refusal::NotAuthentic), "{confused:?}");
    }
}

#[test]
fn a_value_without_context_opens_with_none_and_with_nothing_else() {
    let value = seal(&key(), id(), &nonce([1; 16]), &Context::NONE, PLAINTEXT);
    assert!(open(&key(), &value, &[]).is_ok());
    assert_eq!(open(&key(), &value, &[""]), Err(Refusal::NotAuthentic));
    assert_eq!(open(&key(), &value, CONTEXT), Err(Refusal::NotAuthentic));
}

#[test]
fn a_context_of_many_parts_binds_each_of_them_and_their_order() {
    let parts: Vec<String> = (0..300).map(|n| n.to_string()).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let value = seal(&key(), id(), &nonce([1; 16]), &Context::new(&parts).unwrap(), PLAINTEXT);
    assert!(open(&key(), &value, &parts).is_ok());
    let mut swapped = parts.clone();
    swapped.swap(10, 11);
    assert_eq!(open(&key(), &value, &swapped), Err(Refusal::NotAuthentic));
    assert_eq!(open(&key(), &value, &parts[..299]), Err(Refusal::NotAuthentic));
}

#[test]
fn a_refused_value_leaves_no_plaintext_in_the_buffer() {
    let mut value = value();
    let last = value.len() - 1;
    value[last] ^= 1;
    let parsed = Ciphertext::parse(&value).ok().unwrap();
    let message_key = key().suite_key(id()).message_key(parsed.nonce());
    let mut out = parsed.body().to_vec();
    let opened = parsed.open_in_place(&message_key, &Context::new(CONTEXT).unwrap(), &mut out);
    assert_eq!(opened, Err(NotAuthentic));
    assert!(!out.windows(4).any(|window| PLAINTEXT.windows(4).any(|text| text == window)));
}

#[test]
fn a_buffer_of_the_wrong_length_is_refused_and_left_alone() {
    let value = value();
    let parsed = Ciphertext::parse(&value).ok().unwrap();
    let message_key = key().suite_key(id()).message_key(parsed.nonce());
    for length in [0, PLAINTEXT.len() - 1, PLAINTEXT.len() + 1] {
        let mut out = vec![0x77; length];
        let opened = parsed.open_in_place(&message_key, &Context::new(CONTEXT).unwrap(), &mut out);
        assert_eq!(opened, Err(NotAuthentic));
        assert!(out.iter().all(|byte| *byte == 0x77));
    }
}

#[test]
fn what_is_no_value_is_named_for_what_is_wrong_with_it() {
    let refusal = |bytes: &[u8]| Ciphertext::parse(bytes).err();
    assert_eq!(refusal(b""), Some(Malformed::TooShort));
    assert_eq!(refusal(b"078-05-1120"), Some(Malformed::Format));
    assert_eq!(refusal(&[0xF9]), Some(Malformed::TooShort));
    assert_eq!(refusal(&[0xF9; 41]), Some(Malformed::TooShort));
    let mut value = value();
    value[1] = 0x02;
    assert_eq!(refusal(&value), Some(Malformed::Suite(0x02)));
    value[1] = 0x01;
    for id in [0, -1, i64::MIN] {
        value[2..10].copy_from_slice(&id.to_be_bytes());
        assert_eq!(refusal(&value), Some(Malformed::KeyId));
    }
}

#[test]
fn a_buffer_without_room_for_a_value_can_not_be_sealed() {
    let nonce = nonce([1; 16]);
    let message_key = key().suite_key(id()).message_key(&nonce);
    for length in 0..OVERHEAD {
        let mut buffer = vec![0; length];
        let sealed = seal_in_place(&message_key, id(), &nonce, &Context::NONE, &mut buffer);
        assert_eq!(sealed, Err(SealError));
    }
}

#[test]
fn every_nonce_gives_another_value() {
    let one = seal_at([1; 16], PLAINTEXT);
    let two = seal_at([2; 16], PLAINTEXT);
    assert_ne!(one[26..], two[26..]);
}
