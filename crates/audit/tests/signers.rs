//! How signing keys are introduced, and what our checkpoints say.

#![allow(clippy::unwrap_used)]

use fieldcrypt_audit::{
    AuditKey, Checkpoint, Frontier, Introduction, LogId, LogRow, Malformed, NotSigned, Note, Place,
    SignerStatement, SigningKey, VerifyingKey, sign_note,
};
use fieldcrypt_envelope::{DataKey, KeyId};

const LOG: LogId = LogId([0x5A; 16]);

#[test]
fn a_statement_is_this_text() {
    let key = signer(1).verifying_key().to_string();
    assert_eq!(
        statement(None).to_text().unwrap(),
        format!(
            "pg_fieldcrypt audit signer v1\n\
             log 5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a\n\
             place 18446744073709551615 16384 3\n\
             key {key}\n\
             size 3\n\
             root BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n\
             time 2026-11-23T00:30:00.500000Z\n\
             handover unclean\n\
             previous none\n"
        )
    );
}

#[test]
fn the_audit_key_introduces_a_key() {
    let (id, key) = audit_key(42);
    let statement = statement(None);
    let text = statement.by_audit_key(id, &key).unwrap();
    let note = Note::parse(&text).unwrap();
    assert_eq!(SignerStatement::open(&note), Ok((statement, Introduction::Mac(id))));
    assert_eq!(SignerStatement::verify_mac(&note, &key), Ok(()));

    // Under another key, or for another id of the same key, it is not authentic.
    let other = SignerStatement::verify_mac(&note, &audit_key(43).1);
    assert_eq!(other, Err(NotSigned::Invalid));
    let renamed = text.replace("audit-key/42 ", "audit-key/43 ");
    assert_eq!(SignerStatement::open(&Note::parse(&renamed).unwrap()), Err(Malformed));
    for name in ["042", "+42", "-42", "0", "", "9223372036854775808", "42x"] {
        let renamed = text.replace("audit-key/42 ", &format!("audit-key/{name} "));
        let opened = Note::parse(&renamed).and_then(|note| SignerStatement::open(&note));
        assert_eq!(opened, Err(Malformed), "{name}");
    }
}

#[test]
fn every_change_of_an_introduction_is_noticed() {
    let (id, key) = audit_key(42);
    let predecessor = signer(2);
    let by_mac = statement(None).by_audit_key(id, &key).unwrap();
    let by_key =
        statement(Some(predecessor.verifying_key().clone())).by_signer(&predecessor).unwrap();
    for text in [by_mac, by_key] {
        for at in 0..text.len() {
            for bit in [1, 2, 32] {
                let mut changed = text.clone().into_bytes();
                changed[at] ^= bit;
                let Ok(changed) = String::from_utf8(changed) else { continue };
                let Ok(note) = Note::parse(&changed) else { continue };
                let verdict = match SignerStatement::open(&note) {
                    Err(Malformed) => continue,
                    Ok((_, Introduction::Mac(_))) => SignerStatement::verify_mac(&note, &key),
                    Ok((statement, Introduction::Predecessor)) => {
                        note.verify(&statement.previous.unwrap())
                    }
                    Ok((statement, Introduction::Itself)) => note.verify(&statement.key),
                };
                assert!(verdict.is_err(), "{changed}");
            }
        }
    }
}

#[test]
fn a_predecessor_introduces_a_key() {
    let predecessor = signer(2);
    let statement = statement(Some(predecessor.verifying_key().clone()));
    let note = Note::parse(&statement.by_signer(&predecessor).unwrap()).unwrap();
    assert_eq!(SignerStatement::open(&note), Ok((statement.clone(), Introduction::Predecessor)));
    assert_eq!(note.verify(predecessor.verifying_key()), Ok(()));

    // A key that introduces itself says so; a stranger's signature is no introduction.
    let note = Note::parse(&statement.by_signer(&signer(1)).unwrap()).unwrap();
    assert_eq!(SignerStatement::open(&note), Ok((statement.clone(), Introduction::Itself)));
    let note = Note::parse(&statement.by_signer(&signer(3)).unwrap()).unwrap();
    assert_eq!(SignerStatement::open(&note), Err(Malformed));
}

#[test]
fn two_signatures_are_no_introduction() {
    let predecessor = signer(2);
    let text =
        statement(Some(predecessor.verifying_key().clone())).by_signer(&predecessor).unwrap();
    let line = text.lines().last().unwrap();
    let note = Note::parse(&format!("{text}{line}\n")).unwrap();
    assert_eq!(SignerStatement::open(&note), Err(Malformed));
    assert_eq!(SignerStatement::verify_mac(&note, &audit_key(1).1), Err(NotSigned::ByThisKey));
}

#[test]
fn other_texts_are_no_statements() {
    let text = statement(None).to_text().unwrap();
    assert!(SignerStatement::parse(&text).is_ok());
    for (from, to) in [
        ("v1\n", "v2\n"),
        ("log 5a", "log 5A"),
        ("log 5a", "log a"),
        ("place 18", "place 018"),
        ("place 18", "place  18"),
        (" 16384 3", " 16384"),
        (" 16384 3", " 16384 3 3"),
        (" 16384 3", " -1 3"),
        ("size 3", "size +3"),
        ("size 3", "size 03"),
        ("Bwc=", "Bwd="),
        ("Bwc=", "Bwc"),
        ("0000Z", "0000"),
        ("unclean", "dirty"),
        ("unclean", "Clean"),
        ("none\n", "none"),
        ("none\n", "none\n\n"),
        ("none\n", "\n"),
        ("none\n", "none\nfinal\n"),
        ("\nsize", "\n\nsize"),
        ("\n", "\r\n"),
    ] {
        assert_ne!(text.replace(from, to), text);
        assert_eq!(
            SignerStatement::parse(&text.replace(from, to)),
            Err(Malformed),
            "{from:?} {to:?}"
        );
    }
}

#[test]
fn one_mac_or_signature_never_serves_as_another() {
    // A statement is no checkpoint, a checkpoint no statement, and neither begins as a row does.
    let text = statement(None).to_text().unwrap();
    assert_eq!(Checkpoint::parse(&text), Err(Malformed));
    let checkpoint = Checkpoint::of(&LOG, &Frontier::new(), 0, None, false).unwrap().to_text();
    assert_eq!(SignerStatement::parse(&checkpoint), Err(Malformed));
    let mut row = Vec::new();
    self::row().encode(&mut row);
    assert_ne!(row[0], text.as_bytes()[0]);
}

#[test]
fn audit_keys_are_their_ids_own() {
    let key = DataKey::generate().unwrap();
    let id = |id| KeyId::new(id).unwrap();
    let mac = |id| key.audit_key(id).mac(b"message");
    assert_eq!(mac(id(1)), mac(id(1)));
    assert_ne!(mac(id(1)), mac(id(2)));
    assert!(key.audit_key(id(1)).is_mac_of(b"message", &mac(id(1))));
    assert!(!key.audit_key(id(1)).is_mac_of(b"Message", &mac(id(1))));
    assert!(!key.audit_key(id(2)).is_mac_of(b"message", &mac(id(1))));
}

#[test]
fn our_checkpoints_say_when_and_what_was_before() {
    let mut tree = Frontier::new();
    tree.append([7; 32]);
    let first = Checkpoint::of(&LOG, &tree, 1_795_393_800_500_000, None, false).unwrap();
    assert_eq!(
        first.to_text(),
        "pg_fieldcrypt/5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a\n1\n\
         BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n\
         time 2026-11-23T00:30:00.500000Z\nprevious none\n"
    );
    assert_eq!(first.previous(), Some(None));
    assert_eq!(first.log_id(), Some(LOG));
    assert!(!first.is_final());
    let second = Checkpoint::of(&LOG, &tree, -1, Some(&first.hash()), true).unwrap();
    assert_eq!(second.previous(), Some(Some(first.hash())));
    assert_eq!(second.time(), Some(-1));
    assert!(second.is_final());
    let key = signer(1);
    let note = Note::parse(&sign_note(&second.to_text(), &key).unwrap()).unwrap();
    assert_eq!(note.verify(key.verifying_key()), Ok(()));
    assert_eq!(Checkpoint::parse(note.text()), Ok(second.clone()));
    assert!(Checkpoint::of(&LOG, &tree, i64::MAX, None, false).is_none());

    // Said twice is not said.
    let twice = Checkpoint {
        extensions: [second.extensions.as_slice(), &second.extensions].concat(),
        ..second
    };
    assert_eq!((twice.time(), twice.previous()), (None, None));
}

#[test]
fn other_origins_are_not_ours() {
    for origin in [
        "pg_fieldcrypt/",
        "pg_fieldcrypt/5a",
        "pg_fieldcrypt/5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A",
        "pg_fieldcrypt/5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a",
        "PG_fieldcrypt/5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a",
        "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a",
    ] {
        assert_eq!(LogId::of_origin(origin), None, "{origin}");
    }
    assert_eq!(LogId::of_origin(&LOG.origin()), Some(LOG));
}

fn statement(previous: Option<VerifyingKey>) -> SignerStatement {
    SignerStatement {
        log: LOG,
        place: Place { system_identifier: u64::MAX, database: 16384, timeline: 3 },
        key: signer(1).verifying_key().clone(),
        size: 3,
        root: [7; 32],
        at: 1_795_393_800_500_000,
        is_clean: false,
        previous,
    }
}

fn signer(seed: u8) -> SigningKey {
    SigningKey::from_seed(&LOG.origin(), &[seed; 32]).ok().unwrap()
}

fn audit_key(id: i64) -> (KeyId, AuditKey) {
    let id = KeyId::new(id).unwrap();
    (id, DataKey::generate().unwrap().audit_key(id))
}

fn row() -> LogRow {
    LogRow {
        id: 1,
        event: "key_created".into(),
        actor: "a".into(),
        role: "a".into(),
        backend_pid: 1,
        ..LogRow::default()
    }
}
