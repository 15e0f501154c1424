//! The encoding of rows: golden vectors, and that no two rows encode alike.

#![allow(clippy::unwrap_used)]

use fieldcrypt_audit::{Record, leaf_hash};
use fieldcrypt_envelope::sha256;
use proptest::prelude::*;

const EMPTY: Record<'_> = Record {
    id: 1,
    at: 0,
    event: "",
    actor: "",
    role: "",
    client_address: None,
    application: None,
    backend_pid: 0,
    transaction_id: None,
    tenant: None,
    key_id: None,
    reason: None,
    table_name: None,
    partition_name: None,
    row_key: None,
    old_row_key: None,
    changed_columns: None,
    error_code: None,
    value_count: None,
    key_ids: None,
};

#[test]
fn the_golden_rows_have_their_bytes() {
    assert_eq!(
        hex(&EMPTY),
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
    let full = Record {
        id: 1_795_393_800_500_000,
        at: -1,
        event: "key_created",
        actor: "app",
        role: "r\u{f6}le",
        client_address: Some("10.0.0.1"),
        application: Some(""),
        backend_pid: 4711,
        transaction_id: Some(1 << 40),
        tenant: Some("<b>'\"\n"),
        key_id: Some(i64::MAX),
        reason: Some("why"),
        table_name: Some("public.t"),
        partition_name: Some("public.t_1"),
        row_key: Some("{\"id\": 1}"),
        old_row_key: Some("{\"id\": 0}"),
        changed_columns: Some(&["ssn", ""]),
        error_code: Some("KF001"),
        value_count: Some(-2),
        key_ids: Some(&[7, -1]),
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

/// A row that owns its texts, of few enough values that two of them are often alike, or nearly so.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    integers: (i64, i64, i32),
    event: String,
    actor: String,
    role: String,
    transaction_id: Option<u64>,
    texts: [Option<String>; 9],
    key_id: Option<i64>,
    changed_columns: Option<Vec<String>>,
    value_count: Option<i64>,
    key_ids: Option<Vec<i64>>,
}

impl Row {
    fn encode(&self) -> Vec<u8> {
        let text = |at: usize| self.texts[at].as_deref();
        let columns: Option<Vec<&str>> =
            self.changed_columns.as_ref().map(|names| names.iter().map(String::as_str).collect());
        encoded(&Record {
            id: self.integers.0,
            at: self.integers.1,
            event: &self.event,
            actor: &self.actor,
            role: &self.role,
            client_address: text(0),
            application: text(1),
            backend_pid: self.integers.2,
            transaction_id: self.transaction_id,
            tenant: text(2),
            key_id: self.key_id,
            reason: text(3),
            table_name: text(4),
            partition_name: text(5),
            row_key: text(6),
            old_row_key: text(7),
            changed_columns: columns.as_deref(),
            error_code: text(8),
            value_count: self.value_count,
            key_ids: self.key_ids.as_deref(),
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_two_rows_encode_alike(rows in prop::collection::vec(row(), 2..8)) {
        for (at, one) in rows.iter().enumerate() {
            for other in &rows[at + 1..] {
                prop_assert_eq!(one == other, one.encode() == other.encode());
                // Nor is one the beginning of another, so what follows a row can't be taken for it.
                prop_assert!(one == other || !other.encode().starts_with(&one.encode()));
            }
        }
    }

    #[test]
    fn moving_text_between_neighbours_changes_the_bytes(text in "[\\x00-\\x04a]{0,12}", a: prop::sample::Index, b: prop::sample::Index) {
        // The bytes 0 to 4 are what lengths and presence are made of.
        let (a, b) = (a.index(text.len() + 1), b.index(text.len() + 1));
        let split = |at: usize| encoded(&Record { actor: &text[..at], role: &text[at..], ..EMPTY });
        prop_assert_eq!(a == b, split(a) == split(b));
        let optional = |at: usize| {
            encoded(&Record { reason: Some(&text[..at]), table_name: Some(&text[at..]), ..EMPTY })
        };
        prop_assert_eq!(a == b, optional(a) == optional(b));
        let array = |at: usize| {
            encoded(&Record { changed_columns: Some(&[&text[..at], &text[at..]]), ..EMPTY })
        };
        prop_assert_eq!(a == b, array(a) == array(b));
    }
}

fn row() -> impl Strategy<Value = Row> {
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
            )| Row {
                integers,
                event,
                actor,
                role,
                transaction_id,
                texts,
                key_id,
                changed_columns,
                value_count,
                key_ids,
            },
        )
}

fn encoded(record: &Record<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    record.encode(&mut out);
    out
}

fn hex(record: &Record<'_>) -> String {
    base16ct::lower::encode_string(&encoded(record))
}
