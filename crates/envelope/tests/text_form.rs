//! The text form, `fc1:` and base64url: one text for each value, and nothing else passes.

#![allow(clippy::unwrap_used)]

mod support;

use fieldcrypt_envelope::ciphertext::{from_text, to_text};
use fieldcrypt_envelope::{Context, Malformed};
use support::{data_key, key_id, nonce, seal};

fn value(length: usize) -> Vec<u8> {
    let plaintext = vec![b'p'; length];
    seal(&data_key([1; 32]), key_id(5), &nonce([0xFE; 16]), &Context::NONE, &plaintext)
}

#[test]
fn a_value_comes_back_from_its_text() {
    for length in 0..50 {
        let value = value(length);
        let text = to_text(&value);
        assert!(text.starts_with("fc1:"));
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b":-_".contains(&b)));
        assert_eq!(from_text(text.as_bytes()), Ok(value));
    }
}

#[test]
fn another_prefix_is_refused() {
    let text = to_text(&value(3));
    for prefix in ["", "fc1", "fc2:", "FC1:", " fc1:", "fc1 :", "\\xf9"] {
        let other = format!("{prefix}{}", &text[4..]);
        assert_eq!(from_text(other.as_bytes()), Err(Malformed::TextPrefix), "{prefix}");
    }
    assert_eq!(from_text(b"078-05-1120"), Err(Malformed::TextPrefix));
}

#[test]
fn padding_whitespace_and_the_other_alphabet_are_refused() {
    let text = to_text(&value(3));
    assert!(
        text.contains('-') || text.contains('_'),
        "the test value uses the alphabet's own digits"
    );
    for other in [
        format!("{text}="),
        format!("{text}=="),
        format!("{text}\n"),
        format!("{text} "),
        format!("fc1: {}", &text[4..]),
        format!("{}\n{}", &text[..20], &text[20..]),
        format!("{}\0{}", &text[..20], &text[20..]),
        text.replace('-', "+").replace('_', "/"),
    ] {
        assert_eq!(from_text(other.as_bytes()), Err(Malformed::Base64), "{other}");
    }
    let mut not_utf8 = text.into_bytes();
    not_utf8[10] = 0xFF;
    assert_eq!(from_text(&not_utf8), Err(Malformed::Base64));
}

#[test]
fn only_one_text_gives_a_value() {
    // In the last digit some bits belong to no byte; setting them must not give a second text.
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    for length in 0..3 {
        let value = value(length);
        let text = to_text(&value).into_bytes();
        let same = DIGITS
            .iter()
            .filter(|digit| {
                let mut other = text.clone();
                *other.last_mut().unwrap() = **digit;
                from_text(&other).is_ok_and(|bytes| bytes == value)
            })
            .count();
        assert_eq!(same, 1);
    }
}

#[test]
fn base64_of_what_is_no_value_is_refused() {
    assert_eq!(from_text(b"fc1:"), Err(Malformed::TooShort));
    assert_eq!(from_text(b"fc1:A"), Err(Malformed::Base64));
    assert_eq!(from_text(b"fc1:AAAA"), Err(Malformed::Format));
    assert_eq!(from_text(to_text(&value(0)[..41]).as_bytes()), Err(Malformed::TooShort));
    let mut other_suite = value(0);
    other_suite[1] = 9;
    assert_eq!(from_text(to_text(&other_suite).as_bytes()), Err(Malformed::Suite(9)));
}

#[test]
fn no_truncated_text_is_a_value_but_a_shorter_body() {
    let text = to_text(&value(0));
    for length in 0..text.len() {
        assert!(from_text(&text.as_bytes()[..length]).is_err());
    }
}
