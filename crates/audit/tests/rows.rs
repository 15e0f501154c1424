//! The encoding of rows: golden vectors, and that no two rows encode alike.

#![allow(clippy::unwrap_used)]

use fieldcrypt_audit::{LogRow, leaf_hash};
use fieldcrypt_envelope::sha256;
use proptest::prelude::*;

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
    }
}

/// Of few enough values that two rows are often alike, or nearly so.
fn row() -> impl Strategy<Value = LogRow> {
    let integer = || prop::sample::select(vec![0i64, 1, 256, -1]);
    let text = || "[\\x00\\x01ab]{0,3}";
    let texts = prop::array::uniform9(prop::option::of(text()));
    (
        (integer(), integer(), prop::sample::select(vec![0i32, 1, -1])),
        (text(), text(), text()),
        prop::option::of(prop::sample::select(vec![0u64, 1, u64::MAX])),
        texts,
        prop::option::of(integer()),
        prop::option::of(prop::collection::vec(text(), 0..3)),
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
                changed_columns,
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
