//! Attacks on wrapped keys: damage, and moves between rows, tenants and master keys.

#![allow(clippy::unwrap_used)]

mod support;

use fieldcrypt_envelope::keys::WRAPPED_KEY_LENGTH;
use fieldcrypt_envelope::{DataKey, KeyId, KeyMetadata, MasterKey, RewrapError, UnwrapError};
use support::{key_id, wrap_by_hand, wrap_with_check};

fn metadata() -> KeyMetadata<'static> {
    KeyMetadata {
        tenant: "acme",
        key_id: key_id(42),
        version: 3,
        purpose: "field",
        algorithm: "XAES-256-GCM",
    }
}

fn master_key() -> MasterKey {
    MasterKey::derive(&[0x4D; 32])
}

struct Row {
    wrapped: [u8; WRAPPED_KEY_LENGTH],
    check: [u8; 16],
}

fn row(metadata: &KeyMetadata<'_>) -> Row {
    let key = DataKey::generate().ok().unwrap();
    Row {
        wrapped: master_key().wrap_key(&key, metadata).ok().unwrap(),
        check: key.check(metadata.key_id),
    }
}

fn refusal(wrapped: &[u8], metadata: &KeyMetadata<'_>, check: &[u8]) -> Option<UnwrapError> {
    master_key().unwrap_key(wrapped, metadata, check).err()
}

#[test]
fn a_wrapped_key_opens_to_the_same_key() {
    let key = DataKey::generate().ok().unwrap();
    let wrapped = master_key().wrap_key(&key, &metadata()).ok().unwrap();
    let check = key.check(metadata().key_id);
    let opened = master_key().unwrap_key(&wrapped, &metadata(), &check).ok().unwrap();
    assert_eq!(opened.check(metadata().key_id), check);
    assert_eq!(opened.check(key_id(7)), key.check(key_id(7)));
}

#[test]
fn a_key_wrapped_by_an_independent_implementation_opens() {
    let wrapped = wrap_by_hand(&[0x4D; 32], &[0x0D; 32], &metadata(), &[0x4E; 24]);
    let check = support::hkdf_by_hand(&[0x0D; 32], &[b"dek-check", &42i64.to_be_bytes()]);
    let opened = master_key().unwrap_key(&wrapped, &metadata(), &check[..16]).ok().unwrap();
    assert_eq!(opened.check(metadata().key_id), check[..16]);
}

#[test]
fn wrapping_twice_shows_no_equality() {
    let key = DataKey::generate().ok().unwrap();
    let one = master_key().wrap_key(&key, &metadata()).ok().unwrap();
    let two = master_key().wrap_key(&key, &metadata()).ok().unwrap();
    assert_ne!(one[1..25], two[1..25]);
    assert_ne!(one[25..57], two[25..57]);
}

#[test]
fn no_flipped_bit_opens() {
    let row = row(&metadata());
    for at in 0..WRAPPED_KEY_LENGTH {
        for bit in 0..8 {
            let mut flipped = row.wrapped;
            flipped[at] ^= 1 << bit;
            let expected = if at == 0 { UnwrapError::Malformed } else { UnwrapError::NotAuthentic };
            assert_eq!(refusal(&flipped, &metadata(), &row.check), Some(expected), "byte {at}");
        }
    }
}

#[test]
fn no_other_length_opens() {
    let row = row(&metadata());
    let longer = [row.wrapped.as_slice(), &[0; 16]].concat();
    for length in (0..longer.len()).filter(|length| *length != WRAPPED_KEY_LENGTH) {
        let cut = &longer[..length];
        assert_eq!(refusal(cut, &metadata(), &row.check), Some(UnwrapError::Malformed));
    }
}

#[test]
fn a_wrapped_key_does_not_open_with_any_metadata_changed() {
    let row = row(&metadata());
    for changed in [
        KeyMetadata { tenant: "other", ..metadata() },
        KeyMetadata { tenant: "", ..metadata() },
        KeyMetadata { tenant: "ACME", ..metadata() },
        KeyMetadata { tenant: "acme\0", ..metadata() },
        KeyMetadata { key_id: key_id(43), ..metadata() },
        KeyMetadata { key_id: key_id(42 << 32), ..metadata() },
        KeyMetadata { version: 2, ..metadata() },
        KeyMetadata { version: 0, ..metadata() },
        KeyMetadata { purpose: "search", ..metadata() },
        KeyMetadata { purpose: "", ..metadata() },
        KeyMetadata { algorithm: "AES-256-GCM", ..metadata() },
        // The same letters, cut elsewhere.
        KeyMetadata { purpose: "fieldX", algorithm: "AES-256-GCM", ..metadata() },
        KeyMetadata { purpose: "XAES-256-GCM", algorithm: "field", ..metadata() },
    ] {
        let refused = refusal(&row.wrapped, &changed, &row.check);
        assert_eq!(refused, Some(UnwrapError::NotAuthentic), "{changed:?}");
    }
}

#[test]
fn a_wrapped_key_does_not_open_with_another_check() {
    let row = row(&metadata());
    for at in 0..16 {
        let mut check = row.check;
        check[at] ^= 1;
        assert_eq!(refusal(&row.wrapped, &metadata(), &check), Some(UnwrapError::NotAuthentic));
    }
    for check in [&[][..], &row.check[..15], &[row.check.as_slice(), &[0]].concat()] {
        assert_eq!(refusal(&row.wrapped, &metadata(), check), Some(UnwrapError::NotAuthentic));
    }
}

#[test]
fn a_wrapped_key_does_not_open_under_another_master_key() {
    let row = row(&metadata());
    for other in [[0; 32], [0x4C; 32], [0xFF; 32]] {
        let opened = MasterKey::derive(&other).unwrap_key(&row.wrapped, &metadata(), &row.check);
        assert_eq!(opened.err(), Some(UnwrapError::NotAuthentic));
    }
}

#[test]
fn a_wrapped_key_moved_to_another_row_does_not_open() {
    let other = KeyMetadata { tenant: "evil", key_id: key_id(66), version: 1, ..metadata() };
    let own = metadata();
    let (victim, attacker) = (row(&own), row(&other));
    // The wrapped key alone, with its check, and swapped the other way round.
    for (moved, metadata, check) in [
        (&victim, &other, &attacker.check),
        (&victim, &other, &victim.check),
        (&attacker, &own, &victim.check),
        (&attacker, &own, &attacker.check),
    ] {
        let refused = refusal(&moved.wrapped, metadata, check);
        assert_eq!(refused, Some(UnwrapError::NotAuthentic));
    }
}

#[test]
fn parts_of_two_wrapped_keys_of_one_row_do_not_open_together() {
    let (one, two) = (row(&metadata()), row(&metadata()));
    for part in [1..25, 25..57, 57..73] {
        let mut mixed = one.wrapped;
        mixed[part.clone()].copy_from_slice(&two.wrapped[part]);
        for check in [&one.check, &two.check] {
            assert_eq!(refusal(&mixed, &metadata(), check), Some(UnwrapError::NotAuthentic));
        }
    }
}

#[test]
fn key_ids_are_positive_and_differ() {
    for id in [0, -1, i64::MIN] {
        assert!(KeyId::new(id).is_none());
    }
    assert_eq!(key_id(i64::MAX).as_i64(), i64::MAX);
    let ids: std::collections::HashSet<_> =
        (0..1_000).map(|_| KeyId::generate().ok().unwrap()).collect();
    assert_eq!(ids.len(), 1_000);
    assert!(ids.iter().all(|id| id.as_i64() > 0));
}

#[test]
fn one_key_serves_no_two_purposes() {
    let key = DataKey::generate().ok().unwrap();
    assert_ne!(key.check(key_id(1)), key.check(key_id(2)));
    let master_key = master_key();
    assert_ne!(master_key.export_key()[..16], master_key.fingerprint().0);
}

#[test]
fn a_fingerprint_is_abbreviated_for_messages_only() {
    let fingerprint = master_key().fingerprint();
    let shown = fingerprint.to_string();
    assert_eq!(shown.chars().count(), 9);
    assert!(shown.ends_with('…'));
    assert!(shown.starts_with(&format!("{:02X}{:02X}", fingerprint.0[0], fingerprint.0[1])));
}

#[test]
fn a_key_is_wrapped_again_under_another_master_key() {
    let row = row(&metadata());
    let target = MasterKey::derive(&[0x54; 32]);
    let rewrapped =
        master_key().rewrap(&target, &row.wrapped, &metadata(), &row.check).ok().unwrap();
    let opened = target.unwrap_key(&rewrapped, &metadata(), &row.check).ok().unwrap();
    let before = master_key().unwrap_key(&row.wrapped, &metadata(), &row.check).ok().unwrap();
    // Of another id too, so that it is the key and not its stored check that is the same.
    assert_eq!(opened.check(key_id(7)), before.check(key_id(7)));
    assert_eq!(refusal(&rewrapped, &metadata(), &row.check), Some(UnwrapError::NotAuthentic));
}

#[test]
fn what_does_not_open_is_not_wrapped_again() {
    let row = row(&metadata());
    let target = MasterKey::derive(&[0x54; 32]);
    let refused = |wrapped: &[u8], metadata: &KeyMetadata<'_>, check: &[u8]| {
        master_key().rewrap(&target, wrapped, metadata, check).err()
    };
    let not_authentic = Some(RewrapError::Unwrap(UnwrapError::NotAuthentic));
    for position in 1..WRAPPED_KEY_LENGTH {
        let mut damaged = row.wrapped;
        damaged[position] ^= 1;
        assert_eq!(refused(&damaged, &metadata(), &row.check), not_authentic, "byte {position}");
    }
    let moved = KeyMetadata { tenant: "umbrella", ..metadata() };
    assert_eq!(refused(&row.wrapped, &moved, &row.check), not_authentic);
    assert_eq!(refused(&row.wrapped, &metadata(), &[0; 16]), not_authentic);
    assert_eq!(refused(&row.wrapped, &metadata(), &[]), not_authentic);
    let malformed = Some(RewrapError::Unwrap(UnwrapError::Malformed));
    assert_eq!(refused(&row.wrapped[..72], &metadata(), &row.check), malformed);
    // The old wrapping, opened by the wrong master key.
    let wrong = target.rewrap(&master_key(), &row.wrapped, &metadata(), &row.check).err();
    assert_eq!(wrong, not_authentic);
}

#[test]
fn a_key_whose_check_is_not_its_own_is_not_wrapped_again() {
    // Wrapped with the check of another key: authentic, but not the key that the row says.
    let check = [0xAA; 16];
    let wrapped = wrap_with_check(&[0x4D; 32], &[0x0D; 32], &metadata(), &[0x4E; 24], &check);
    assert!(refusal(&wrapped, &metadata(), &check).is_none());
    let target = MasterKey::derive(&[0x54; 32]);
    let refused = master_key().rewrap(&target, &wrapped, &metadata(), &check).err();
    assert_eq!(refused, Some(RewrapError::Unwrap(UnwrapError::NotAuthentic)));
}
