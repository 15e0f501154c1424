//! Texts that claim to be master keys: read line by line, as a whole, and written again.

#![no_main]

use base64ct::{Base64, Encoding};
use fieldcrypt_envelope::master_key_text::{MAX_KEYS, MasterKeyTextError, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match parse(data) {
        Ok(keys) => {
            assert!((1..=MAX_KEYS).contains(&keys.len()));
            for (i, key) in keys.iter().enumerate() {
                assert!(keys[..i].iter().all(|other| other.fingerprint() != key.fingerprint()));
            }
            // Comments and blank lines change nothing, but a text in UTF-16 begins with its mark.
            let commented = [b"# comment\r\n\n".as_slice(), data, b"\n#"].concat();
            let is_wide = data.starts_with(&[0xFF, 0xFE]) || data.starts_with(&[0xFE, 0xFF]);
            assert!(
                is_wide
                    || parse(&commented).is_ok_and(|again| {
                        again
                            .iter()
                            .map(|key| key.fingerprint())
                            .eq(keys.iter().map(|key| key.fingerprint()))
                    })
            );
        }
        Err(
            MasterKeyTextError::WrongLength { line, .. }
            | MasterKeyTextError::NotHexOrBase64 { line, .. },
        ) => {
            assert!((1..=data.split(|byte| *byte == b'\n').count()).contains(&line));
        }
        Err(MasterKeyTextError::Empty | MasterKeyTextError::TooMany) => {}
    }

    if data.len() > 64 {
        return;
    }
    // 32 bytes are a key in either of their texts, and other lengths are none; 64 hex digits are hex,
    // though they could be the base64 of 48 bytes.
    let hex: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(parse(hex.as_bytes()).is_ok(), data.len() == 32);
    let base64 = Base64::encode_string(data);
    let is_hex = base64.len() == 64 && base64.bytes().all(|byte| byte.is_ascii_hexdigit());
    assert_eq!(parse(base64.as_bytes()).is_ok(), data.len() == 32 || is_hex);
});
