//! The primitives against other people's vectors: C2SP for XAES-256-GCM, Wycheproof for the rest.

use hkdf::Hkdf;
use hmac::{KeyInit, Mac};
use shake::Shake128;
use shake::digest::{ExtendableOutput, Update, XofReader};
use wycheproof::TestResult;

use super::*;

fn xaes_parts(key: &[u8; 32], nonce: &[u8; 24]) -> (Aes256Gcm, [u8; 12]) {
    let (prefix, rest) = nonce.split_at(12);
    let derived = xaes_derive(key, &cmac_subkey(key), prefix.try_into().unwrap());
    (derived, rest.try_into().unwrap())
}

fn xaes_seal(key: &[u8; 32], nonce: &[u8; 24], aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
    let (derived, rest) = xaes_parts(key, nonce);
    let mut out = plaintext.to_vec();
    let tag = gcm_seal(&derived, &rest, aad, &mut out).unwrap();
    out.extend_from_slice(&tag);
    out
}

fn xaes_open(key: &[u8; 32], nonce: &[u8; 24], aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let (derived, rest) = xaes_parts(key, nonce);
    let (body, tag) = sealed.split_last_chunk().unwrap();
    let mut out = body.to_vec();
    gcm_open(&derived, &rest, aad, &mut out, tag).then_some(out)
}

#[test]
fn xaes_256_gcm_gives_the_two_vectors_of_the_specification() {
    let nonce = b"ABCDEFGHIJKLMNOPQRSTUVWX";
    // The first key's CMAC subkey needs no reduction, the second's does.
    for (key_byte, aad, expected) in [
        (1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
        (3, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
    ] {
        let sealed = xaes_seal(&[key_byte; 32], nonce, aad.as_bytes(), b"XAES-256-GCM");
        assert_eq!(base16ct::lower::encode_string(&sealed), expected);
    }
}

/// The accumulated test of the C2SP specification: inputs from one SHAKE-128, outputs into another.
#[test]
fn xaes_256_gcm_gives_the_accumulated_hash_of_the_specification() {
    fn bytes<const N: usize>(stream: &mut impl XofReader) -> [u8; N] {
        let mut out = [0; N];
        stream.read(&mut out);
        out
    }
    fn short_text(stream: &mut impl XofReader) -> Vec<u8> {
        let [length] = bytes(stream);
        let mut out = vec![0; usize::from(length)];
        stream.read(&mut out);
        out
    }

    let mut stream = Shake128::default().finalize_xof();
    let mut digest = Shake128::default();
    for _ in 0..10_000 {
        let (key, nonce) = (bytes(&mut stream), bytes(&mut stream));
        let plaintext = short_text(&mut stream);
        let aad = short_text(&mut stream);
        let sealed = xaes_seal(&key, &nonce, &aad, &plaintext);
        assert!(xaes_open(&key, &nonce, &aad, &sealed) == Some(plaintext));
        digest.update(&sealed);
    }
    let hash: [u8; 32] = bytes(&mut digest.finalize_xof());
    assert_eq!(
        base16ct::lower::encode_string(&hash),
        "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"
    );
}

#[test]
fn aes_256_gcm_agrees_with_wycheproof() {
    let set = wycheproof::aead::TestSet::load(wycheproof::aead::TestName::AesGcm).unwrap();
    let (mut accepted, mut refused) = (0, 0);
    for group in &set.test_groups {
        if (group.key_size, group.nonce_size, group.tag_size) != (256, 96, 128) {
            continue;
        }
        for test in &group.tests {
            let key = Aes256Gcm::new(test.key.as_slice().try_into().unwrap());
            let nonce: [u8; 12] = test.nonce.as_slice().try_into().unwrap();
            let tag: [u8; 16] = test.tag.as_slice().try_into().unwrap();
            let mut buffer = test.ct.to_vec();
            let opened = gcm_open(&key, &nonce, &test.aad, &mut buffer, &tag);
            if test.result == TestResult::Invalid {
                assert!(!opened, "test {}", test.tc_id);
                assert_eq!(buffer, test.ct.as_slice(), "no plaintext is left behind");
                refused += 1;
                continue;
            }
            assert!(opened, "test {}", test.tc_id);
            assert_eq!(buffer, test.pt.as_slice(), "test {}", test.tc_id);
            let sealed_tag = gcm_seal(&key, &nonce, &test.aad, &mut buffer).unwrap();
            assert_eq!(buffer, test.ct.as_slice(), "test {}", test.tc_id);
            assert_eq!(sealed_tag, tag, "test {}", test.tc_id);
            accepted += 1;
        }
    }
    assert_eq!((accepted, refused), (39, 27));
}

#[test]
fn hkdf_sha256_agrees_with_wycheproof() {
    let set = wycheproof::hkdf::TestSet::load(wycheproof::hkdf::TestName::HkdfSha256).unwrap();
    let mut done = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let mut out = vec![0; test.size];
        let expanded =
            Hkdf::<Sha256>::new(Some(&test.salt), &test.ikm).expand(&test.info, &mut out);
        if test.result == TestResult::Invalid {
            assert!(expanded.is_err(), "test {}", test.tc_id);
        } else {
            assert!(expanded.is_ok(), "test {}", test.tc_id);
            assert_eq!(out, test.okm.as_slice(), "test {}", test.tc_id);
        }
        done += 1;
    }
    assert!(done >= 80, "{done}");
}

#[test]
fn hmac_sha256_agrees_with_wycheproof() {
    let set = wycheproof::mac::TestSet::load(wycheproof::mac::TestName::HmacSha256).unwrap();
    let (mut accepted, mut refused) = (0, 0);
    for group in &set.test_groups {
        for test in &group.tests {
            let mut mac = hmac::Hmac::<Sha256>::new_from_slice(&test.key).unwrap();
            Mac::update(&mut mac, &test.msg);
            let verified = mac.verify_truncated_left(&test.tag).is_ok();
            assert_eq!(group.tag_size, test.tag.len() * 8);
            assert_eq!(verified, test.result != TestResult::Invalid, "test {}", test.tc_id);
            if verified {
                accepted += 1;
            } else {
                refused += 1;
            }
        }
    }
    assert!(accepted >= 60 && refused >= 60, "{accepted}, {refused}");
}

/// RFC 5869 with the salt of this project, computed from HMAC by hand.
#[test]
fn hkdf_is_extract_with_the_projects_salt_then_one_block_of_expand() {
    let hmac = |key: &[u8], message: &[u8]| {
        let mut mac = hmac::Hmac::<Sha256>::new_from_slice(key).unwrap();
        Mac::update(&mut mac, message);
        mac.finalize().into_bytes()
    };
    let pseudorandom = hmac(b"pg_fieldcrypt/v1", &[9; 32]);
    let block = hmac(&pseudorandom, b"some info\x01");
    assert_eq!(*hkdf::<32>(&[9; 32], &[b"some", b" ", b"info"]), *block);
    assert_eq!(*hkdf::<16>(&[9; 32], &[b"some info"]), block[..16]);
}

#[test]
fn scheduled_keys_are_wiped_on_drop() {
    fn wiped_on_drop<T: zeroize::ZeroizeOnDrop>() {}
    wiped_on_drop::<Aes256Gcm>();
    wiped_on_drop::<Aes256Enc>();
    wiped_on_drop::<sha2::Sha256>();
}
