//! Exports and proofs as documents: what is written is read again, and what is not whole is refused.

#![allow(clippy::unwrap_used)]

mod support;

use fieldcrypt_audit::export::{Unusable, verify};
use fieldcrypt_audit::verify::{Anchor, FindingKind, Status};
use fieldcrypt_audit::{
    Hash, InclusionProof, LogRow, NotProven, NotSigned, SigningKey, inclusion_proof,
};
use support::{Dice, Keys, Manipulation, Sealer, Stored, authenticate, kinds, leaf_of};

#[test]
fn an_export_says_what_the_tables_say() {
    let (keys, sealer) = log();
    let anchors = Anchor::parse(&sealer.stored.checkpoints[1].note).unwrap();
    let text = sealer.stored.export();
    assert!(text.is_ascii());
    let exported = verify(text.as_bytes(), anchors.clone(), &mut &keys).unwrap();
    assert_eq!(exported, sealer.stored.verify(anchors, &keys));
    assert_eq!(exported.1.status, Status::Ok);
    assert!(kinds(&exported.0).contains(&FindingKind::Anchored));
}

#[test]
fn an_export_of_a_forged_log_says_so() {
    let (keys, sealer) = log();
    let mut dice = Dice::new(3);
    for _ in 0..500 {
        let mut stored = sealer.stored.clone();
        let what = Manipulation::random(&mut dice, &mut stored);
        let exported = verify(stored.export().as_bytes(), vec![], &mut &keys).unwrap();
        assert_eq!(exported, stored.verify(vec![], &keys), "{what}");
    }
}

#[test]
fn a_changed_export_is_found() {
    let (keys, sealer) = log();
    let text = sealer.stored.export();
    let anchor = Anchor::parse(&sealer.stored.checkpoints.last().unwrap().note).unwrap();
    let mut dice = Dice::new(4);
    let mut unusable = 0;
    for _ in 0..3000 {
        let mut bytes = text.clone().into_bytes();
        let at = dice.below(bytes.len() as u64) as usize;
        let byte = b' ' + dice.below(95) as u8;
        if bytes[at] == byte {
            continue;
        }
        bytes[at] = byte;
        match verify(bytes.as_slice(), anchor.clone(), &mut &keys) {
            Err(_) => unusable += 1,
            Ok((findings, summary)) => {
                // But for what nobody seals: ids of checkpoints, and times within a minute.
                let line = text[..at].lines().count();
                let near = &text[at.saturating_sub(60)..at];
                let is_loose = near.contains("\"id\":\"")
                    || near.contains("at\":\"")
                    || near.contains("exported_at");
                assert!(
                    summary.status == Status::Critical || is_loose,
                    "line {line}, {near:?} -> {:?}: {findings:?}",
                    byte as char
                );
            }
        }
    }
    assert!(unusable > 300);
}

#[test]
fn what_is_no_export_is_refused() {
    let (keys, sealer) = log();
    let text = sealer.stored.export();
    let refused = |text: &str| verify(text.as_bytes(), vec![], &mut &keys).err();
    assert!(matches!(refused(""), Some(Unusable::NotAnExport)));
    assert!(matches!(refused("{}"), Some(Unusable::NotAnExport)));
    assert!(matches!(refused(&text[1..]), Some(Unusable::NotAnExport)));
    let lines: Vec<&str> = text.lines().collect();
    assert!(matches!(refused(&lines[1..].join("\n")), Some(Unusable::NotAnExport)));
    assert!(matches!(refused(&lines[..lines.len() - 1].join("\n")), Some(Unusable::Cut)));
    let without = |at: usize| [&lines[..at], &lines[at + 1..]].concat().join("\n");
    for at in 1..lines.len() {
        assert!(matches!(refused(&without(at)), Some(Unusable::Cut)), "{at}");
    }
    let later = text.replacen("\"version\":1", "\"version\":2", 1);
    assert!(matches!(refused(&later), Some(Unusable::Version(2))));
    let twice = format!("{text}{text}");
    assert!(matches!(refused(&twice), Some(Unusable::Line { .. })));
    for (from, to) in [
        ("\"leaf\":\"0\"", "\"leaf\":\"00\""),
        ("\"leaf\":\"0\"", "\"leaf\":0"),
        ("\"leaf\":\"0\"", "\"leaf\":\"-0\""),
        ("\"leaf\":\"0\"", "\"leaf\":\"0\",\"leaf\":\"0\""),
        ("\"leaf\":\"0\"", "\"leaf\":\"0\",\"value\":\"secret\""),
        ("\"event\":", "\"Event\":"),
        ("\"mac\":\"", "\"mac\":\"A"),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text);
        assert!(matches!(refused(&changed), Some(Unusable::Line { line: 2 })), "{to}");
    }
    // Blank lines are none.
    assert!(refused(&text.replace('\n', "\n\n \r\n")).is_none());
}

#[test]
fn every_row_is_proven_and_no_other() {
    let (_, sealer) = log();
    let Stored { rows, checkpoints, signers, .. } = &sealer.stored;
    let last = checkpoints.last().unwrap();
    let key = sealer.key.verifying_key();
    let leaves: Vec<Hash> = rows.iter().map(leaf_of).collect();
    for (index, row) in rows.iter().enumerate() {
        let path = inclusion_proof(&leaves, index as u64).unwrap();
        let public_key = &signers.last().unwrap().public_key;
        let proof_of = |row: &LogRow| InclusionProof::new(row, &path, &last.note, public_key);
        let proof = proof_of(row);
        assert_eq!(proof.verify(key), Ok(()));
        assert_eq!(InclusionProof::parse(&proof.to_json()), Ok(proof.clone()));
        assert_eq!(proof.public_key().as_ref(), Ok(key));

        let mut other = row.clone();
        other.actor.push('x');
        assert_eq!(proof_of(&other).verify(key), Err(NotProven::NotIncluded));
        let mut other = row.clone();
        other.leaf = other.leaf.map(|leaf| leaf ^ 1);
        assert_eq!(proof_of(&other).verify(key), Err(NotProven::NotIncluded));
        let mut other = row.clone();
        (other.mac, other.mac_key_id) = (None, None);
        assert_eq!(proof_of(&other).verify(key), Err(NotProven::NotIncluded));
        let mut other = row.clone();
        other.leaf = None;
        assert_eq!(proof_of(&other).verify(key), Err(NotProven::NotIncluded));
        let stranger = SigningKey::generate(&sealer.log.origin()).ok().unwrap();
        let verdict = proof.verify(stranger.verifying_key());
        assert_eq!(verdict, Err(NotProven::NotSigned(NotSigned::ByThisKey)));
        let elsewhere = SigningKey::generate("example.com/log").ok().unwrap();
        assert!(proof.verify(elsewhere.verifying_key()).is_err());
    }
}

fn log() -> (Keys, Sealer) {
    let keys = Keys::new(&[7, 8]);
    let mut sealer = Sealer::new(&keys);
    for round in 0..4 {
        let row = sealer.write(None);
        row.tenant = Some("<b> \u{1F511} \"\\\n\u{7f}".into());
        authenticate(row, &keys);
        sealer.write_and_seal(3, &keys);
        if round == 1 {
            sealer.succeed();
        }
    }
    (keys, sealer)
}

/// Writes what the fuzzer begins with: `cargo test -p fieldcrypt-audit --test export -- --ignored`.
#[test]
#[ignore = "writes files"]
fn seeds_of_the_fuzzer() {
    let (keys, sealer) = log();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds");
    let write = |path: &str, text: &str| std::fs::write(format!("{folder}/{path}"), text).unwrap();
    write("audit_export/log", &sealer.stored.export());
    let small = Sealer::new(&keys);
    write("audit_export/empty", &small.stored.export());
    write("audit_note/checkpoint", &sealer.stored.checkpoints[1].note);
    write("audit_note/by-audit-key", &sealer.stored.signers[0].proof);
    write("audit_note/by-predecessor", &sealer.stored.signers[1].proof);
    write("audit_note/key", &sealer.stored.signers[1].public_key);
    let leaves: Vec<Hash> = sealer.stored.rows.iter().map(leaf_of).collect();
    let last = sealer.stored.checkpoints.last().unwrap();
    let path = inclusion_proof(&leaves, 3).unwrap();
    let proof = InclusionProof::new(&sealer.stored.rows[3], &path, &last.note, "x");
    write("audit_note/proof", &proof.to_json());
}
