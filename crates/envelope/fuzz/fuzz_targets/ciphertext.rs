//! Bytes and texts that claim to be values: parsed, written, read again, and opened.

#![no_main]

use std::sync::LazyLock;

use fieldcrypt_envelope::ciphertext::{
    OVERHEAD, PLAINTEXT_OFFSET, from_text, seal_in_place, to_text,
};
use fieldcrypt_envelope::{Ciphertext, Context, DataKey, KeyId, KeyMetadata, MasterKey};
use libfuzzer_sys::fuzz_target;

/// Always the same key, so that a crash can be repeated: the first of `tests/vectors/wrapped-keys.json`.
static KEY: LazyLock<DataKey> = LazyLock::new(|| {
    let metadata = KeyMetadata {
        tenant: "default",
        key_id: KeyId::new(1).unwrap(),
        version: 1,
        purpose: "field",
        algorithm: "XAES-256-GCM",
    };
    let bytes = |hex: &str| base16ct::lower::decode_vec(hex).unwrap();
    let master_key: [u8; 32] =
        bytes("a9c68d93c31ad2fc86165fb3644488f0c5960aea012950868e532abd92f446d4")
            .try_into()
            .unwrap();
    let wrapped = bytes(
        "016ca2aff5ad92eccc6184f43ef9e6378d21a25ace6fe292ff1ec66a99c977f3cbf8c61bf1ba4462\
         332ec5402f5363c922f5f073265588d68494e08d8a8d92e0795e47253c83d971bf",
    );
    MasterKey::derive(&master_key)
        .unwrap_key(&wrapped, &metadata, &bytes("765cc70de0ee6119e693a130a8c4fef9"))
        .unwrap_or_else(|error| panic!("{error:?}"))
});

fuzz_target!(|data: &[u8]| {
    // As text: one text for each value.
    if let Ok(bytes) = from_text(data) {
        assert_eq!(to_text(&bytes).as_bytes(), data);
    }

    // As bytes: what is parsed keeps every byte, and opens under no key that did not seal it.
    let Ok(value) = Ciphertext::parse(data) else {
        assert!(from_text(to_text(data).as_bytes()).is_err());
        return;
    };
    assert_eq!(data.len(), value.plaintext_length() + OVERHEAD);
    assert_eq!(value.nonce().as_bytes(), &data[10..26]);
    assert_eq!(value.key_id().as_i64().to_be_bytes(), data[2..10]);
    assert!(from_text(to_text(data).as_bytes()).is_ok_and(|bytes| bytes == data));
    let key = KEY.suite_key(value.key_id()).message_key(value.nonce());
    assert!(value.open(&key, &Context::NONE).is_err());

    // Sealed with the same nonce, its body comes back, in its own context only.
    let body = &data[PLAINTEXT_OFFSET..data.len() - 16];
    let part = String::from_utf8_lossy(body);
    let parts = [part.as_ref()];
    let Some(context) = Context::new(&parts) else { return };
    let mut sealed = data.to_vec();
    let done = seal_in_place(&key, value.key_id(), value.nonce(), &context, &mut sealed);
    assert!(done.is_ok());
    let Ok(sealed) = Ciphertext::parse(&sealed) else { panic!("sealed, but no value") };
    assert!(sealed.open(&key, &context).is_ok_and(|plain| plain == body));
    assert!(sealed.open(&key, &Context::NONE).is_err());
});
