//! A forger with full write access to the tables, and some thousand manipulations at random: each is
//! found. Without the master key by what is in the database; with it, and with the signing keys, by a
//! checkpoint that was kept outside.

#![allow(clippy::unwrap_used)]

mod support;

use fieldcrypt_audit::verify::{Anchor, Finding, FindingKind, Status};
use fieldcrypt_audit::{Checkpoint, Frontier, SigningKey, sign_note};
use support::{Dice, Keys, Manipulation, Sealer, Stored, authenticate, bad, leaf_of};

/// Manipulations, of one log each.
const ROUNDS: u64 = 3000;

#[test]
fn every_manipulation_without_the_master_key_is_found() {
    let (keys, sealer) = log();
    let (findings, summary) = sealer.stored.verify(vec![], &keys);
    assert_eq!(bad(&findings).len(), 1, "the row without a MAC: {findings:?}");
    assert_eq!(summary.status, Status::Warning);
    // What the last checkpoint of the log states is known outside: without it the tail could be cut.
    let anchor = Anchor::parse(&sealer.stored.checkpoints.last().unwrap().note).unwrap();
    let mut dice = Dice::new(1);
    let mut done = std::collections::BTreeMap::new();
    for round in 0..ROUNDS {
        let mut stored = sealer.stored.clone();
        let what = Manipulation::random(&mut dice, &mut stored);
        if stored == sealer.stored {
            continue;
        }
        *done.entry(what.split(' ').next().unwrap_or("").to_owned()).or_insert(0) += 1;
        let (findings, summary) = stored.verify(vec![], &keys);
        let found = summary.status == Status::Critical;
        assert!(found || what.contains("tail"), "round {round}: {what}: {findings:?}");
        let (findings, summary) = stored.verify(anchor.clone(), &keys);
        assert_eq!(summary.status, Status::Critical, "round {round}: {what}: {findings:?}");
    }
    // The dice were fair enough for every kind to come.
    assert_eq!(done.len(), Manipulation::KINDS, "{done:?}");
    assert!(done.values().all(|count| *count > 5), "{done:?}");
}

#[test]
fn whoever_has_all_keys_fails_against_an_outside_checkpoint() {
    let (keys, sealer) = log();
    let outside = &sealer.stored.checkpoints[sealer.stored.checkpoints.len() / 2];
    let anchor = Anchor::parse(&outside.note).unwrap();
    let mut dice = Dice::new(2);
    for round in 0..600 {
        let mut stored = sealer.stored.clone();
        // One of the rows that the outside checkpoint covers, but for the one that tells of the origin.
        let at = 1 + dice.below(outside.size as u64 - 1) as usize;
        let what = Manipulation::of_row(&mut dice, &mut stored, at);
        if stored == sealer.stored {
            continue;
        }
        let resealed = reseal(stored, &keys, &sealer);
        let (findings, _) = resealed.verify(vec![], &keys);
        assert!(bad(&findings).is_empty(), "the documented limit: {what}: {findings:?}");
        let (findings, summary) = resealed.verify(anchor.clone(), &keys);
        assert_eq!(summary.status, Status::Critical, "round {round}: {what}: {findings:?}");
        assert!(findings.iter().any(is_anchor_mismatch), "round {round}: {what}: {findings:?}");
    }
}

#[test]
fn deleting_rows_that_are_not_sealed_is_not_found() {
    let (keys, sealer) = unsealed();
    let mut stored = sealer.stored.clone();
    stored.rows.retain(|row| row.leaf.is_some());
    assert!(bad(&stored.verify(vec![], &keys).0).is_empty(), "the documented limit");
    // But one that is changed is.
    let last = sealer.stored.rows.len() - 1;
    let mut stored = sealer.stored.clone();
    stored.rows[last].actor.push('x');
    assert_eq!(stored.verify(vec![], &keys).1.status, Status::Critical);
}

#[test]
fn a_row_that_somebody_without_the_master_key_put_in_or_changed_before_it_was_sealed_is_found() {
    let missing = |stored: &Stored, keys: &Keys, row: i64| {
        let (findings, summary) = stored.verify(vec![], keys);
        assert_eq!(summary.status, Status::Warning, "{findings:?}");
        // Beside what is told of rows that wait too long for their leaves.
        let of_contents =
            bad(&findings).into_iter().filter(|one| one.kind != FindingKind::NotSealed);
        let found: Vec<_> = of_contents.map(|one| (one.kind, one.log_id)).collect();
        assert_eq!(found, [(FindingKind::MacMissing, Some(row))]);
    };
    // Changed, and the MAC that no longer fits taken away.
    let (keys, mut sealer) = unsealed();
    let last = sealer.stored.rows.last_mut().unwrap();
    last.actor.push('x');
    (last.mac, last.mac_key_id) = (None, None);
    let id = last.id;
    missing(&sealer.stored, &keys, id);
    sealer.seal(false);
    missing(&sealer.stored, &keys, id);
    // Put in.
    let (keys, mut sealer) = unsealed();
    let id = sealer.write(None).id;
    missing(&sealer.stored, &keys, id);
    sealer.seal(false);
    missing(&sealer.stored, &keys, id);
}

/// Some sealed rows, and two that are not.
fn unsealed() -> (Keys, Sealer) {
    let keys = Keys::new(&[7]);
    let mut sealer = Sealer::new(&keys);
    sealer.write_and_seal(5, &keys);
    sealer.write(Some(&keys));
    sealer.write(Some(&keys));
    (keys, sealer)
}

/// The forger gives every row its MAC and its leaf, every checkpoint its root, and signs them all. (The
/// log has one signing key.)
fn reseal(mut stored: Stored, keys: &Keys, sealer: &Sealer) -> Stored {
    let sealed_before = stored.rows.iter().filter(|row| row.leaf.is_some()).count() as u64;
    stored.rows.sort_by_key(|row| row.leaf);
    stored.rows.dedup_by_key(|row| row.id);
    let mut tree = Frontier::new();
    let mut trees = vec![tree.clone()];
    for row in &mut stored.rows {
        authenticate(row, keys);
        row.leaf = Some(tree.size() as i64);
        tree.append(leaf_of(row));
        trees.push(tree.clone());
    }
    let mut previous = None;
    for checkpoint in &mut stored.checkpoints {
        // One that states rows that are no longer there states those that are.
        let size = checkpoint.size.min(tree.size() as i64).min(sealed_before as i64) as usize;
        let tree = &trees[size];
        let text = Checkpoint::of(
            &sealer.log,
            tree,
            checkpoint.at,
            previous.as_ref(),
            checkpoint.is_final,
        )
        .unwrap();
        previous = Some(text.hash());
        checkpoint.size = size as i64;
        checkpoint.root = tree.root().to_vec();
        checkpoint.frontier = tree.to_bytes();
        checkpoint.note = sign_note(&text.to_text(), &sealer.key).unwrap();
    }
    // Rows that he put in are sealed, too.
    let last = stored.checkpoints.last().unwrap().clone();
    if last.size < tree.size() as i64 {
        let at = last.at + 1;
        let text = Checkpoint::of(&sealer.log, &tree, at, previous.as_ref(), false).unwrap();
        stored.checkpoints.push(fieldcrypt_audit::verify::StoredCheckpoint {
            id: last.id + 1,
            size: tree.size() as i64,
            at,
            is_final: false,
            root: tree.root().to_vec(),
            frontier: tree.to_bytes(),
            note: sign_note(&text.to_text(), &sealer.key).unwrap(),
            ..last
        });
    }
    stored
}

fn is_anchor_mismatch(finding: &Finding) -> bool {
    finding.kind.name() == "anchor_mismatch" || finding.kind.name() == "tail_cut"
}

/// 80 rows in 16 checkpoints under one signing key; one row without a MAC.
fn log() -> (Keys, Sealer) {
    let keys = Keys::new(&[7, 8]);
    let mut sealer = Sealer::new(&keys);
    sealer.key = SigningKey::generate(&sealer.log.origin()).ok().unwrap();
    sealer.stored.signers.clear();
    sealer.reintroduce(&keys);
    for round in 0..16 {
        for row in 0..5 {
            sealer.write((round * 5 + row != 33).then_some(&keys));
        }
        sealer.seal(round == 15);
    }
    (keys, sealer)
}
