//! Verification: what is said of a log that nobody touched, and of one that somebody did.

#![allow(clippy::unwrap_used)]

mod support;

use fieldcrypt_audit::verify::{Anchor, Beginning, FindingKind, NoKeys, Status, Verifier};
use fieldcrypt_audit::{SigningKey, sign_note};
use support::{Keys, Sealer, Stored, authenticate, bad, encoded, kinds};

#[test]
fn an_empty_log_is_good() {
    let stored = Stored { rows: vec![], checkpoints: vec![], signers: vec![], origins: vec![] };
    let (findings, summary) = stored.verify(vec![], &Keys::new(&[1]));
    assert_eq!(kinds(&findings), [FindingKind::Unanchored]);
    assert_eq!((summary.size, summary.status), (0, Status::Ok));
}

#[test]
fn an_untouched_log_is_good() {
    let (keys, sealer) = log();
    let (findings, summary) = sealer.stored.verify(vec![], &keys);
    assert_eq!(kinds(&findings), [FindingKind::Unanchored]);
    assert_eq!(summary.status, Status::Ok);
    assert_eq!(summary.size, sealer.tree.size());
    assert_eq!(summary.root, Some(sealer.tree.root()));
    assert_eq!((summary.sealed_rows, summary.authentic_rows), (60, 60));
}

#[test]
fn what_is_known_outside_anchors_it() {
    let (keys, sealer) = log();
    let notes = &sealer.stored.checkpoints;
    for (index, text) in [
        (0, notes[0].note.clone()),
        (7, notes[7].note.trim_end().to_owned()),
        (8, format!("{}\n\n", notes[8].note)),
        (3, format!("{}\n{}", sealer.stored.signers[0].public_key, notes[3].note)),
        (9, format!("\n{}\n\n{}", sealer.stored.signers[2].public_key, notes[9].note)),
    ] {
        let (findings, summary) = sealer.stored.verify(Anchor::parse(&text).unwrap(), &keys);
        assert!(bad(&findings).is_empty(), "{findings:?}");
        assert!(kinds(&findings).contains(&FindingKind::Anchored));
        assert_eq!(summary.anchored_size, notes[index].size as u64);
    }
    let key = Anchor::parse(&sealer.stored.signers[0].public_key).unwrap();
    assert_eq!(kinds(&sealer.stored.verify(key, &keys).0), [FindingKind::Anchored]);
    assert_eq!(Anchor::parse(""), Ok(vec![]));
    assert_eq!(Anchor::parse(" \n\n"), Ok(vec![]));
    for text in ["x", "x\n", "a\n\nb\n", &notes[0].note[1..notes[0].note.len() - 10]] {
        assert!(Anchor::parse(text).is_err(), "{text:?}");
    }
}

#[test]
fn a_strangers_anchor_does_not_fit() {
    let (keys, sealer) = log();
    let (_, other) = log();
    let stranger = SigningKey::generate(&sealer.log.origin()).ok().unwrap();
    let text = sealer.stored.checkpoints[2].note.split_once("\n\n").unwrap().0.to_owned() + "\n";
    let ours = &sealer.stored.signers[0].public_key;
    for anchor in [
        other.stored.checkpoints[2].note.clone(),
        other.stored.signers[0].public_key.clone(),
        stranger.verifying_key().to_string(),
        sign_note(&text, &stranger).unwrap(),
        format!("{}\n{}", stranger.verifying_key(), sign_note(&text, &stranger).unwrap()),
        // Signed, but not by the key that is known outside.
        format!("{ours}\n{}", sealer.stored.checkpoints[9].note),
    ] {
        let (findings, summary) = sealer.stored.verify(Anchor::parse(&anchor).unwrap(), &keys);
        assert!(kinds(&findings).contains(&FindingKind::AnchorMismatch), "{anchor}\n{findings:?}");
        assert_eq!((summary.status, summary.anchored_size), (Status::Critical, 0));
    }
}

#[test]
fn a_cut_tail_is_seen_from_outside_only() {
    let (keys, sealer) = log();
    let last = sealer.stored.checkpoints.last().unwrap();
    let mut stored = sealer.stored.clone();
    stored.checkpoints.truncate(7);
    let size = stored.checkpoints[6].size;
    stored.rows.retain(|row| row.leaf.is_some_and(|leaf| leaf < size));
    stored.signers.retain(|signer| signer.from_size <= size);
    let (findings, _) = stored.verify(vec![], &keys);
    assert!(bad(&findings).is_empty(), "the documented limit: {findings:?}");
    let anchor = Anchor::parse(&last.note).unwrap();
    assert_eq!(
        kinds(&stored.verify(anchor, &keys).0),
        [FindingKind::AnchorMismatch],
        "its signer is gone with the tail"
    );
    let key = &sealer.stored.signers.last().unwrap().public_key;
    let anchor = Anchor::parse(&format!("{key}\n{}", last.note)).unwrap();
    assert_eq!(stored.verify(anchor, &keys).1.status, Status::Critical);
    let mut kept = stored.clone();
    kept.signers = sealer.stored.signers.clone();
    let anchor = Anchor::parse(&last.note).unwrap();
    assert!(kinds(&kept.verify(anchor, &keys).0).contains(&FindingKind::TailCut));
}

#[test]
fn damage_is_told_where_it_is() {
    let (keys, sealer) = log();
    let told = |change: &dyn Fn(&mut Stored)| {
        let mut stored = sealer.stored.clone();
        change(&mut stored);
        let (findings, _) = stored.verify(vec![], &keys);
        bad(&findings).iter().map(|one| (one.kind, one.leaf, one.log_id)).collect::<Vec<_>>()
    };
    let size = |index: usize| Some(sealer.stored.checkpoints[index].size as u64);
    let id = |index: usize| Some(sealer.stored.rows[index].id);
    // A row's contents: that row, and the span in which it lies.
    let span = (FindingKind::RootMismatch, size(2), None);
    assert_eq!(
        told(&|stored| stored.rows[13].actor = "nobody".into()),
        [(FindingKind::RowChanged, Some(13), id(13)), span]
    );
    // Without its MAC: the span, and that it has none.
    let stripped = |stored: &mut Stored| {
        stored.rows[13].actor = "nobody".into();
        stored.rows[13].mac = None;
        stored.rows[13].mac_key_id = None;
    };
    assert_eq!(told(&stripped), [span, (FindingKind::MacMissing, Some(13), id(13))]);
    assert_eq!(
        told(&|stored| {
            stored.rows.remove(13);
        }),
        [(FindingKind::LeafMissing, Some(13), None)]
    );
    assert_eq!(
        told(&|stored| {
            stored.rows.drain(11..28);
        }),
        [(FindingKind::LeafMissing, Some(11), None)]
    );
    assert_eq!(
        told(&|stored| {
            let mut copy = stored.rows[13].clone();
            copy.leaf = Some(60);
            stored.rows.push(copy);
        }),
        [(FindingKind::IdRepeated, Some(60), id(13)), (FindingKind::NotCovered, Some(60), None)]
    );
    assert_eq!(
        told(&|stored| stored.rows[13].leaf = Some(14)),
        [(FindingKind::LeafMissing, Some(13), None), (FindingKind::LeafRepeated, Some(14), id(14)),]
    );
    assert_eq!(
        told(&|stored| {
            stored.rows[13].leaf = Some(14);
            stored.rows[14].leaf = Some(13);
        }),
        [span]
    );
    assert_eq!(
        told(&|stored| {
            stored.rows.truncate(57);
        }),
        [(FindingKind::TailCut, Some(57), None)]
    );
    assert_eq!(
        told(&|stored| {
            stored.checkpoints.remove(4);
        }),
        [(FindingKind::CheckpointMissing, size(5), None)]
    );
    assert_eq!(
        told(&|stored| {
            stored.checkpoints.remove(0);
        }),
        [(FindingKind::CheckpointMissing, size(1), None)]
    );
    assert_eq!(
        told(&|stored| {
            stored.checkpoints.pop();
        }),
        [(FindingKind::NotCovered, size(10), None)]
    );
    assert_eq!(
        told(&|stored| stored.checkpoints.clear()),
        [(FindingKind::NotCovered, Some(0), None)]
    );
    assert_eq!(
        told(&|stored| stored.rows[20].mac = Some(vec![1; 31])),
        [(FindingKind::RowChanged, Some(20), id(20)), (FindingKind::RootMismatch, size(4), None)]
    );
}

#[test]
fn two_damages_are_told_apart() {
    let (keys, sealer) = log();
    let mut stored = sealer.stored.clone();
    stored.rows[3].reason = None;
    stored.rows[45].tenant = None;
    stored.rows.remove(30);
    let (findings, _) = stored.verify(vec![], &keys);
    assert_eq!(
        kinds(&findings),
        [
            FindingKind::RowChanged,
            FindingKind::RootMismatch,
            FindingKind::LeafMissing,
            FindingKind::RowChanged,
            FindingKind::RootMismatch,
            FindingKind::Unanchored
        ]
    );
}

#[test]
fn keys_that_are_not_there_are_said_to_be() {
    let (_, sealer) = log();
    let mut verifier =
        Verifier::new(sealer.stored.origins.clone(), &sealer.stored.signers, vec![], &mut NoKeys);
    verifier.checkpoint(&sealer.stored.checkpoints[0]);
    let (findings, _) = verifier.finish(support::NOW);
    assert!(kinds(&findings).contains(&FindingKind::SignerNotChecked));
    let (findings, summary) = sealer.stored.verify(vec![], &Keys::new(&[99]));
    assert!(kinds(&findings).contains(&FindingKind::MacNotChecked));
    assert_eq!(summary.status, Status::Warning);
    assert_eq!(summary.authentic_rows, 0);
}

#[test]
fn rows_without_a_mac_are_information_before_the_first_that_has_one() {
    let keys = Keys::new(&[1]);
    let mut sealer = Sealer::new(&keys);
    // Of a transaction that ended late.
    sealer.write(Some(&keys));
    sealer.write(None).id = support::START - 1;
    sealer.seal(false);
    let (findings, summary) = sealer.stored.verify(vec![], &keys);
    assert_eq!(kinds(&findings), [FindingKind::Unanchored, FindingKind::NotAuthenticated]);
    assert_eq!(summary.status, Status::Ok);
    sealer.write(None);
    sealer.write(None);
    let (findings, summary) = sealer.stored.verify(vec![], &keys);
    assert_eq!(
        kinds(&findings),
        [
            FindingKind::Unanchored,
            FindingKind::MacMissing,
            FindingKind::NotAuthenticated,
            FindingKind::NotSealed
        ]
    );
    assert_eq!(summary.status, Status::Warning);
    assert_eq!((summary.sealed_rows, summary.unsealed_rows), (3, 2));
}

#[test]
fn a_crash_is_an_unclean_handover() {
    let keys = Keys::new(&[1]);
    let mut sealer = Sealer::new(&keys);
    sealer.write_and_seal(5, &keys);
    sealer.restart(&keys, false);
    sealer.write_and_seal(5, &keys);
    assert_eq!(
        kinds(&sealer.stored.verify(vec![], &keys).0),
        [FindingKind::Unanchored, FindingKind::UncleanHandover]
    );
    // It can't be passed off as clean: not by the column, and not by a statement without a final checkpoint.
    let mut stored = sealer.stored.clone();
    stored.signers[1].is_clean = true;
    assert!(kinds(&stored.verify(vec![], &keys).0).contains(&FindingKind::SignerChanged));
    let mut sealer = Sealer::new(&keys);
    sealer.write_and_seal(5, &keys);
    sealer.restart(&keys, true);
    sealer.write_and_seal(5, &keys);
    assert!(kinds(&sealer.stored.verify(vec![], &keys).0).contains(&FindingKind::UncleanHandover));
}

#[test]
fn a_key_that_nobody_introduced_is_found() {
    let keys = Keys::new(&[1]);
    let strangers = Keys::new(&[1]);
    // The forger has no audit key: under his own, or by itself, or as a successor of nobody's key.
    let mut sealer = Sealer::new(&keys);
    sealer.write_and_seal(5, &keys);
    sealer.restart(&strangers, true);
    sealer.write_and_seal(5, &keys);
    assert!(
        kinds(&sealer.stored.verify(vec![], &keys).0).contains(&FindingKind::SignerNotIntroduced)
    );
    sealer.succeed();
    let again = sealer.stored.verify(vec![], &keys).0;
    let count = |kind| kinds(&again).iter().filter(|one| **one == kind).count();
    assert_eq!(count(FindingKind::SignerNotIntroduced), 2, "nor is its successor");
}

#[test]
fn a_fork_is_told_until_it_is_acknowledged() {
    let keys = Keys::new(&[1]);
    let mut sealer = Sealer::new(&keys);
    sealer.write_and_seal(5, &keys);
    let before = sealer.stored.checkpoints[0].note.clone();
    sealer.write_and_seal(5, &keys);
    // What the first log went on to write elsewhere.
    let elsewhere = {
        let mut other = Sealer {
            log: sealer.log,
            place: sealer.place,
            tree: sealer.tree.clone(),
            key: SigningKey::generate("x").ok().unwrap(),
            now: sealer.now,
            previous: sealer.previous,
            stored: sealer.stored.clone(),
        };
        std::mem::swap(&mut other.key, &mut sealer.key);
        other.write_and_seal(5, &keys);
        std::mem::swap(&mut other.key, &mut sealer.key);
        other.stored.checkpoints[2].note.clone()
    };
    sealer.fork(&keys);
    sealer.write_and_seal(5, &keys);
    let found = |stored: &Stored, anchor: &str| {
        kinds(&stored.verify(Anchor::parse(anchor).unwrap(), &keys).0)
    };
    assert!(found(&sealer.stored, "").contains(&FindingKind::Fork));
    sealer.acknowledge(&keys);
    sealer.seal(false);
    let stored = sealer.stored;
    let good = [FindingKind::Unanchored];
    assert_eq!(found(&stored, ""), good);
    assert!(!found(&stored, &before).contains(&FindingKind::AnchorMismatch));
    // Nothing hides that there was more.
    assert!(found(&stored, &elsewhere).contains(&FindingKind::AnchorMismatch));
    for change in [
        &(|stored: &mut Stored| stored.origins[1].old_size = 5) as &dyn Fn(&mut Stored),
        &|stored| stored.origins[1].old_root.clear(),
        &|stored| stored.origins[1].old_root[0] ^= 1,
        &|stored| stored.origins[1].log.0[0] ^= 1,
        &|stored| stored.origins[1].timeline = 1,
        &|stored| stored.origins[0].old_size = 1,
        &|stored| {
            stored.origins.remove(1);
        },
        &|stored| {
            stored.origins.remove(0);
        },
        &|stored| stored.origins.swap(0, 1),
        &|stored| stored.origins[1].cause = "another cluster".into(),
        &|stored| stored.origins[1].at += 3_600_000_000,
        &|stored| stored.origins[1].old_log = None,
        &|stored| stored.origins[1].acknowledgement.as_mut().unwrap().reason.clear(),
        &|stored| stored.origins[1].acknowledgement.as_mut().unwrap().by.push('x'),
        &|stored| stored.origins[1].acknowledgement.as_mut().unwrap().at += 3_600_000_000,
        &|stored| stored.origins[0].acknowledgement = stored.origins[1].acknowledgement.clone(),
        &|stored| {
            let mut copy = stored.origins[1].clone();
            (copy.id, copy.log.0[0]) = (3, 0);
            stored.origins.push(copy);
        },
    ] {
        let mut changed = stored.clone();
        change(&mut changed);
        assert!(found(&changed, "").contains(&FindingKind::OriginChanged));
    }
}

#[test]
fn it_can_begin_at_a_checkpoint() {
    let (keys, sealer) = log();
    let stored = &sealer.stored;
    let from = |index: usize, stored: &Stored, anchors: &str, reason: Beginning| {
        let mut keys = &keys;
        let anchors = Anchor::parse(anchors).unwrap();
        let mut verifier =
            Verifier::new(stored.origins.clone(), &stored.signers, anchors, &mut keys);
        let mut checkpoints = stored.checkpoints.iter().peekable();
        match reason {
            Beginning::Retired => {
                let edge =
                    fieldcrypt_audit::Frontier::from_bytes(&stored.checkpoints[index].frontier);
                verifier.begin_retired(edge.ok()?);
            }
            _ if verifier.begin_at(&stored.checkpoints[index]) => {
                checkpoints = stored.checkpoints[index + 1..].iter().peekable();
            }
            _ => return None,
        }
        for row in stored.rows.iter().filter(|row| row.leaf >= Some(stored.checkpoints[index].size))
        {
            while let Some(one) = checkpoints.next_if(|one| Some(one.size) <= row.leaf) {
                verifier.checkpoint(one);
            }
            verifier.row(row, &mut keys);
        }
        checkpoints.for_each(|one| verifier.checkpoint(one));
        Some(kinds(&verifier.finish(support::NOW).0))
    };
    let asked = Beginning::Asked;
    assert_eq!(
        from(4, stored, "", asked),
        Some(vec![FindingKind::Unanchored, FindingKind::Partial])
    );
    let early = from(4, stored, &stored.checkpoints[2].note, asked).unwrap();
    assert!(early.contains(&FindingKind::AnchorNotChecked));
    let late = from(4, stored, &stored.checkpoints[6].note, asked).unwrap();
    assert!(late.contains(&FindingKind::Anchored));
    let retired = from(4, stored, "", Beginning::Retired).unwrap();
    assert!(retired.contains(&FindingKind::RetentionUnknown));
    // Unless a row says so, of that size and root.
    for (size, byte, has_mac, is_known) in
        [(0, 0, true, true), (1, 0, true, false), (0, 1, true, false), (0, 0, false, false)]
    {
        let mut sealer = sealer_with(&keys);
        let at = &sealer.stored.checkpoints[4];
        let mut root = at.root.clone();
        root[0] ^= byte;
        let (size, root) = (at.size + size, base16ct::lower::encode_string(&root));
        let row = sealer.write(None);
        row.event = "audit_retired".into();
        row.value_count = Some(size);
        row.reason = Some(format!("5 rows: leaves below {size}, root {root}"));
        if has_mac {
            authenticate(row, &keys);
        }
        sealer.seal(false);
        let found = from(4, &sealer.stored, "", Beginning::Retired).unwrap();
        assert_eq!(found.contains(&FindingKind::Retired), is_known);
        assert_eq!(found.contains(&FindingKind::RetentionUnknown), !is_known);
    }
    // Damage behind it is found, damage before it is not looked at.
    let mut changed = stored.clone();
    changed.rows[3].actor = "nobody".into();
    assert_eq!(from(4, &changed, "", asked), from(4, stored, "", asked));
    changed.rows[50].actor = "nobody".into();
    assert!(from(4, &changed, "", asked).unwrap().contains(&FindingKind::RowChanged));
    // An edge that is not the tree's, and retired rows that came back, are found.
    let mut changed = stored.clone();
    changed.checkpoints[4].frontier[20] ^= 1;
    let found = from(4, &changed, "", Beginning::Retired).unwrap();
    assert!(found.contains(&FindingKind::RootMismatch), "{found:?}");
    // Not at one that was edited.
    for change in [
        &(|stored: &mut Stored| stored.checkpoints[4].frontier[20] ^= 1) as &dyn Fn(&mut Stored),
        &|stored| stored.checkpoints[4].frontier.clear(),
        &|stored| stored.checkpoints[4].signer_id = 77,
        &|stored| stored.checkpoints[4].note = stored.checkpoints[3].note.clone(),
        &|stored| stored.signers.truncate(0),
    ] {
        let mut changed = stored.clone();
        change(&mut changed);
        assert_eq!(from(4, &changed, "", asked), None);
    }
}

/// 60 rows, 12 checkpoints (every 5 rows), a successor, a clean restart; two audit keys.
fn log() -> (Keys, Sealer) {
    let keys = Keys::new(&[7, 8]);
    let sealer = sealer_with(&keys);
    (keys, sealer)
}

fn sealer_with(keys: &Keys) -> Sealer {
    let mut sealer = Sealer::new(keys);
    for round in 0..12 {
        match round {
            4 => sealer.succeed(),
            8 => {
                sealer.stored.checkpoints.pop();
                sealer.previous = previous_of(&sealer);
                sealer.seal(true);
                sealer.restart(keys, true);
            }
            _ => {}
        }
        // The row that tells of the origin is the first.
        sealer.write_and_seal(if round == 0 { 4 } else { 5 }, keys);
    }
    sealer
}

fn previous_of(sealer: &Sealer) -> Option<fieldcrypt_audit::Hash> {
    let note = fieldcrypt_audit::Note::parse(&sealer.stored.checkpoints.last()?.note).ok()?;
    Some(fieldcrypt_audit::Checkpoint::parse(note.text()).ok()?.hash())
}

#[test]
fn rows_are_what_they_seem() {
    // The model itself: two rows are told apart by every column.
    let (_, sealer) = log();
    let a = &sealer.stored.rows[0];
    assert_ne!(encoded(a), encoded(&sealer.stored.rows[1]));
}
