//! A value is plain XAES-256-GCM under a key that any HKDF derives: it opens without this crate.

#![allow(clippy::unwrap_used)]

mod support;

use fieldcrypt_envelope::{Ciphertext, Context};
use support::{data_key, key_id, nonce, open_by_hand, seal};

const DEK: [u8; 32] = [0x0D; 32];

#[test]
fn a_value_opens_with_an_independent_implementation() {
    for (id, start, context, plaintext) in [
        (1, [0; 16], &[][..], &b""[..]),
        (i64::MAX, [0xFF; 16], &["patients.ssn"], b"078-05-1120"),
        (0x0102_0304_0506_0708, *b"ABCDEFGHIJKLMNOP", &["a", "", "\u{e9}"], &[0xA5; 4096]),
    ] {
        let nonce = nonce(start);
        let sealed =
            seal(&data_key(DEK), key_id(id), &nonce, &Context::new(context).unwrap(), plaintext);
        let parts: Vec<&[u8]> = context.iter().map(|part| part.as_bytes()).collect();
        assert_eq!(open_by_hand(&DEK, &sealed, &parts).as_deref(), Some(plaintext));
        assert_eq!(open_by_hand(&DEK, &sealed, &[b"another"]), None);
        assert_eq!(open_by_hand(&[0; 32], &sealed, &parts), None);
    }
}

#[test]
fn a_value_sealed_by_an_independent_implementation_opens() {
    use xaes_256_gcm::Xaes256Gcm;
    use xaes_256_gcm::aead::{Aead, KeyInit, Payload};

    let header = [&[0xF9, 0x01][..], &77i64.to_be_bytes()].concat();
    let aad = [header.as_slice(), &support::canonical_by_hand(&[b"here"])].concat();
    let sealed = Xaes256Gcm::new(&support::suite_key_by_hand(&DEK, 77).into())
        .encrypt(b"0123456789ab\0\0\0\0\0\0\0\0cdef".into(), Payload { msg: b"plain", aad: &aad })
        .unwrap();
    let value = [header.as_slice(), b"0123456789abcdef", &sealed].concat();

    let parsed = Ciphertext::parse(&value).ok().unwrap();
    let message_key = data_key(DEK).suite_key(key_id(77)).message_key(parsed.nonce());
    assert_eq!(
        parsed.open(&message_key, &Context::new(&["here"]).unwrap()).as_deref(),
        Ok(&b"plain"[..])
    );
}
