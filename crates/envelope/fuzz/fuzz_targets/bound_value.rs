//! Bytes and texts that claim to be values of suite 0x02 or 0x03: parsed, written, read again, opened, re-encrypted.

#![no_main]

use std::sync::LazyLock;

use fieldcrypt_envelope::bound::{OpenError, seal_in_place};
use fieldcrypt_envelope::ciphertext::to_text;
use fieldcrypt_envelope::{
    AnyCiphertext, BoundCiphertext, BoundMessageKey, DataKey, Expected, Header, KeyId, KeyMetadata,
    MasterKey, Purpose, from_any_text,
};
use libfuzzer_sys::fuzz_target;

/// A tenant's key and one for loose values. The core makes none of chosen bytes, so they are new in each run; what is
/// asserted holds under any.
static KEYS: LazyLock<[DataKey; 2]> =
    LazyLock::new(|| [key_for(Purpose::Field), key_for(Purpose::Loose)]);

fn key_for(purpose: Purpose) -> DataKey {
    let key_id = KeyId::new(1).unwrap();
    let algorithm = purpose.algorithm();
    let metadata =
        KeyMetadata { tenant: "default", key_id, version: 1, purpose: purpose.name(), algorithm };
    let (master_key, key) = (MasterKey::derive(&[0x4D; 32]), DataKey::generate().unwrap());
    let wrapped = master_key.wrap_key(&key, &metadata).unwrap();
    master_key
        .unwrap_key(&wrapped, &metadata, &key.check(key_id))
        .unwrap_or_else(|error| panic!("{error:?}"))
}

fn message_key(header: &Header) -> BoundMessageKey {
    let mut keys = KEYS.iter().filter_map(|key| key.bound_key(header.key_id, header.kind()).ok());
    let (Some(key), None) = (keys.next(), keys.next()) else { panic!("one key is for it") };
    key.message_key(header.kind(), header.key_id, &header.nonce).unwrap()
}

fuzz_target!(|data: &[u8]| {
    if let Ok(bytes) = from_any_text(data) {
        assert_eq!(to_text(&bytes).as_bytes(), data);
    }
    let header = Header::parse(data);
    let Ok(value) = BoundCiphertext::parse(data) else {
        assert!(!matches!(AnyCiphertext::parse(data), Ok(AnyCiphertext::Bound(_))));
        return;
    };
    assert!(header == Ok(*value.header()));
    let header = *value.header();
    assert!(Header::parse(&data[..header.length()]) == Ok(header));
    assert!((0..header.length()).all(|length| Header::parse(&data[..length]).is_err()));
    assert!(from_any_text(to_text(data).as_bytes()).is_ok_and(|bytes| bytes == data));

    // It opens under no key that did not seal it, and leaves the buffer alone.
    let key = message_key(&header);
    let mut buffer = value.body().to_vec();
    for expected in [Expected::Any, Expected::Place("patients.ssn/17")] {
        let opened = value.open_in_place(&key, expected, &mut buffer);
        assert!(matches!(opened, Err(OpenError::NotAuthentic | OpenError::Misplaced)));
        assert_eq!(buffer, value.body());
    }

    // Sealed with the same header, every byte before the ciphertext is the same, and the body comes back.
    let mut sealed = data.to_vec();
    assert!(seal_in_place(&key, &header, &mut sealed).is_ok());
    assert_eq!(sealed[..header.length()], data[..header.length()]);
    let Ok(sealed) = BoundCiphertext::parse(&sealed) else { panic!("sealed, but no value") };
    let mut opened = sealed.body().to_vec();
    assert_eq!(sealed.open_in_place(&key, Expected::Any, &mut opened), Ok(()));
    assert_eq!(opened, value.body());

    // Under another key it has the same place, form and tag.
    let fresh = header.under(KeyId::new(77).unwrap(), header.nonce);
    let mut moved = vec![0; data.len()];
    let new = message_key(&fresh);
    assert_eq!(sealed.reencrypt_into(&key, &new, fresh.nonce, &mut moved), Ok(()));
    assert!(Header::parse(&moved) == Ok(fresh));
    let Ok(moved) = BoundCiphertext::parse(&moved) else { panic!("moved, but no value") };
    let mut opened = moved.body().to_vec();
    assert_eq!(moved.open_in_place(&new, Expected::Any, &mut opened), Ok(()));
    assert_eq!(opened, value.body());
});
