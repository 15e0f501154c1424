//! The encoding of rows: golden vectors, and that no two rows encode alike.

#![allow(clippy::unwrap_used)]

use fieldcrypt_audit::{LogRow, leaf_hash};
use fieldcrypt_envelope::{DataKey, KeyId, KeyMetadata, MasterKey, sha256};
use proptest::prelude::*;
use serde_json::Value;

const ROWS: &str = include_str!("../../../tests/vectors/audit-rows.json");
const WRAPPED_KEYS: &str = include_str!("../../../tests/vectors/wrapped-keys.json");

/// The frozen vectors of `tests/vectors`. If one of these fails, logs in the field are no longer verified.
#[test]
fn rows_have_the_same_bytes_mac_and_leaf() {
    let rows: Vec<Value> = serde_json::from_str(ROWS).unwrap();
    assert_eq!(rows.len(), 9, "vectors are added here too, and never taken away");
    let bytes = |vector: &Value, name: &str| {
        base16ct::lower::decode_vec(vector[name].as_str().unwrap()).unwrap()
    };
    // The data key of the rows' MACs is the first of the wrapped keys: it can be had in no other way.
    let wrapped: Vec<Value> = serde_json::from_str(WRAPPED_KEYS).unwrap();
    let wrapped = &wrapped[0];
    let metadata = KeyMetadata {
        tenant: wrapped["tenant"].as_str().unwrap(),
        key_id: KeyId::new(wrapped["key_id"].as_str().unwrap().parse().unwrap()).unwrap(),
        version: wrapped["version"].as_u64().unwrap().try_into().unwrap(),
        purpose: wrapped["purpose"].as_str().unwrap(),
        algorithm: wrapped["algorithm"].as_str().unwrap(),
    };
    let master_key = MasterKey::derive(&bytes(wrapped, "mek").try_into().unwrap());
    let (wrapped_bytes, check) = (bytes(wrapped, "wrapped"), bytes(wrapped, "dek_check"));
    let data_key = master_key.unwrap_key(&wrapped_bytes, &metadata, &check).ok().unwrap();
    let mut versions = [0, 0];
    for vector in &rows {
        let name = &vector["name"];
        assert_eq!(vector["dek"], wrapped["dek"], "{name}");
        let mut row: LogRow = serde_json::from_value(vector["row"].clone()).unwrap();
        let row_bytes = encoded(&row);
        assert_eq!(hex(&row), vector["encoded"].as_str().unwrap(), "{name}");
        versions[usize::from(row_bytes[0]) - 1] += 1;
        if let Some(key_id) = row.mac_key_id {
            let mac = data_key.audit_key(KeyId::new(key_id).unwrap()).mac(&row_bytes);
            assert_eq!(mac.to_vec(), bytes(vector, "mac"), "{name}");
            row.mac = Some(mac.to_vec());
        }
        assert_eq!(row.leaf_hash(&row_bytes).to_vec(), bytes(vector, "leaf_hash"), "{name}");
    }
    assert_eq!(versions, [4, 5]);
}

#[test]
fn the_golden_rows_have_their_bytes() {
    assert_eq!(
        hex(&LogRow { id: 1, ..LogRow::default() }),
        "01\
         0000000000000001\
         0000000000000000\
         00000000\
         00000000\
         00000000\
         00\
         00\
         00000000\
         000000000000000000000000"
    );
    let text = |text: &str| Some(text.to_owned());
    let full = LogRow {
        // The seals are no part of what is encoded.
        leaf: Some(5),
        mac: Some(vec![1]),
        mac_key_id: Some(2),
        id: 1_795_393_800_500_000,
        at: -1,
        event: "key_created".into(),
        actor: "app".into(),
        role: "r\u{f6}le".into(),
        client_address: text("10.0.0.1"),
        application: text(""),
        backend_pid: 4711,
        transaction_id: Some(1 << 40),
        tenant: text("<b>'\"\n"),
        key_id: Some(i64::MAX),
        reason: text("why"),
        table_name: text("public.t"),
        partition_name: text("public.t_1"),
        row_key: text("{\"id\": 1}"),
        old_row_key: text("{\"id\": 0}"),
        changed_columns: Some(vec!["ssn".into(), String::new()]),
        error_code: text("KF001"),
        value_count: Some(-2),
        key_ids: Some(vec![7, -1]),
        subject: None,
        contexts: None,
    };
    assert_eq!(
        hex(&full),
        "01\
         000660e6b1b5f320\
         ffffffffffffffff\
         0000000b6b65795f63726561746564\
         00000003617070\
         0000000572c3b66c65\
         010000000831302e302e302e31\
         0100000000\
         00001267\
         010000010000000000\
         01000000063c623e27220a\
         017fffffffffffffff\
         0100000003776879\
         01000000087075626c69632e74\
         010000000a7075626c69632e745f31\
         01000000097b226964223a20317d\
         01000000097b226964223a20307d\
         01000000020000000373736e00000000\
         01000000054b46303031\
         01fffffffffffffffe\
         01000000020000000000000007ffffffffffffffff"
    );
}

#[test]
fn a_row_with_a_value_in_a_newer_column_is_of_the_newer_version() {
    let old = LogRow { id: 1, ..LogRow::default() };
    let rest = hex(&old)[2..].to_owned();
    let subject = |subject: &str| LogRow { subject: Some(subject.into()), ..old.clone() };
    assert_eq!(hex(&subject("li")), format!("02{rest}01000000026c6900"));
    // Empty is not NULL.
    assert_eq!(hex(&subject("")), format!("02{rest}010000000000"));
    let contexts = LogRow { contexts: Some(vec!["t/1".into(), String::new()]), ..old.clone() };
    assert_eq!(hex(&contexts), format!("02{rest}00010000000200000003742f3100000000"));
    let none = LogRow { contexts: Some(Vec::new()), ..old };
    assert_eq!(hex(&none), format!("02{rest}000100000000"));
}

#[test]
fn a_row_of_one_version_is_not_to_be_had_from_one_of_the_other() {
    // What is cut off or put in without the version byte is found, and with it, too: the MAC is that of the first row.
    let key = DataKey::generate().unwrap().audit_key(KeyId::new(3).unwrap());
    let new = LogRow { id: 1, subject: Some("dr. li".into()), ..LogRow::default() };
    let mac = key.mac(&encoded(&new));
    for forged in [
        LogRow { subject: None, ..new.clone() },
        LogRow { subject: Some(String::new()), ..new.clone() },
        LogRow { subject: None, contexts: Some(vec!["dr. li".into()]), ..new.clone() },
        LogRow { subject: None, reason: Some("dr. li".into()), ..new.clone() },
    ] {
        assert!(!key.is_mac_of(&encoded(&forged), &mac));
        assert_ne!(forged.leaf_hash(&encoded(&forged)), new.leaf_hash(&encoded(&new)));
    }
    assert!(key.is_mac_of(&encoded(&new), &mac));
}

#[test]
fn a_leaf_is_the_hash_of_the_row_and_its_mac() {
    let mac = [0xAB; 32];
    assert_eq!(leaf_hash(b"row", None), sha256(&[b"\x00\x00row"]));
    assert_eq!(
        leaf_hash(b"row", Some((258, &mac))),
        sha256(&[b"\x00\x01\x00\x00\x00\x00\x00\x00\x01\x02", &mac, b"row"])
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_two_rows_encode_alike(rows in prop::collection::vec(row(), 2..8)) {
        for (at, one) in rows.iter().enumerate() {
            for other in &rows[at + 1..] {
                prop_assert_eq!(one == other, encoded(one) == encoded(other));
                // Nor is one the beginning of another, so what follows a row can't be taken for it.
                prop_assert!(one == other || !encoded(other).starts_with(&encoded(one)));
            }
        }
    }

    #[test]
    fn moving_text_between_neighbours_changes_the_bytes(text in "[\\x00-\\x04a]{0,12}", a: prop::sample::Index, b: prop::sample::Index) {
        // The bytes 0 to 4 are what lengths and presence are made of.
        let (a, b) = (a.index(text.len() + 1), b.index(text.len() + 1));
        let halves = |at: usize| (text[..at].to_owned(), text[at..].to_owned());
        let split = |at: usize| {
            let (actor, role) = halves(at);
            encoded(&LogRow { actor, role, ..LogRow::default() })
        };
        prop_assert_eq!(a == b, split(a) == split(b));
        let optional = |at: usize| {
            let (reason, table_name) = halves(at);
            encoded(&LogRow { reason: Some(reason), table_name: Some(table_name), ..LogRow::default() })
        };
        prop_assert_eq!(a == b, optional(a) == optional(b));
        let array = |at: usize| {
            let (one, other) = halves(at);
            encoded(&LogRow { changed_columns: Some(vec![one, other]), ..LogRow::default() })
        };
        prop_assert_eq!(a == b, array(a) == array(b));
        let new = |at: usize| {
            let (subject, context) = halves(at);
            encoded(&LogRow { subject: Some(subject), contexts: Some(vec![context]), ..LogRow::default() })
        };
        prop_assert_eq!(a == b, new(a) == new(b));
    }
}

/// Of few enough values that two rows are often alike, or nearly so.
fn row() -> impl Strategy<Value = LogRow> {
    let integer = || prop::sample::select(vec![0i64, 1, 256, -1]);
    let text = || "[\\x00\\x01ab]{0,3}";
    let texts = prop::array::uniform10(prop::option::of(text()));
    (
        (integer(), integer(), prop::sample::select(vec![0i32, 1, -1])),
        (text(), text(), text()),
        prop::option::of(prop::sample::select(vec![0u64, 1, u64::MAX])),
        texts,
        prop::option::of(integer()),
        prop::array::uniform2(prop::option::of(prop::collection::vec(text(), 0..3))),
        prop::option::of(integer()),
        prop::option::of(prop::collection::vec(integer(), 0..3)),
    )
        .prop_map(
            |(
                integers,
                (event, actor, role),
                transaction_id,
                texts,
                key_id,
                [changed_columns, contexts],
                value_count,
                key_ids,
            )| {
                let [
                    client_address,
                    application,
                    tenant,
                    reason,
                    table_name,
                    partition_name,
                    row_key,
                    old_row_key,
                    error_code,
                    subject,
                ] = texts;
                let (id, at, backend_pid) = integers;
                LogRow {
                    id,
                    at,
                    event,
                    actor,
                    role,
                    client_address,
                    application,
                    backend_pid,
                    transaction_id,
                    tenant,
                    key_id,
                    reason,
                    table_name,
                    partition_name,
                    row_key,
                    old_row_key,
                    changed_columns,
                    error_code,
                    value_count,
                    key_ids,
                    subject,
                    contexts,
                    ..LogRow::default()
                }
            },
        )
}

fn encoded(row: &LogRow) -> Vec<u8> {
    let mut out = Vec::new();
    row.encode(&mut out);
    out
}

fn hex(row: &LogRow) -> String {
    base16ct::lower::encode_string(&encoded(row))
}
