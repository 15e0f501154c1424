//! States in which a log can be copied, or a slow transaction leaves it: none is an accusation. What looks the
//! same and was forged is found all the same.

#![allow(clippy::unwrap_used)]

mod support;

use fieldcrypt_audit::verify::{FindingKind, Sealing, Status};
use support::{Keys, Sealer, authenticate, kinds};

#[test]
fn an_origin_that_was_copied_before_it_had_a_key_is_gone_on_from() {
    let keys = Keys::new(&[1]);
    let mut sealer = Sealer::new(&keys);
    sealer.stored.signers.clear();
    sealer.write(Some(&keys));
    for row in sealer.stored.rows.iter_mut() {
        row.leaf = Some(sealer.tree.size() as i64);
        sealer.tree.append(support::leaf_of(row));
    }
    // Where it began, nobody has signed yet.
    let (findings, _) = sealer.stored.verify_where(Sealing::StandsStill, vec![], &keys);
    assert_eq!(kinds(&findings), [FindingKind::NotYetCovered, FindingKind::Unanchored]);
    sealer.fork(&keys);
    sealer.stored.signers.clear();
    sealer.reintroduce(&keys);
    sealer.write_and_seal(3, &keys);
    let (findings, summary) = sealer.stored.verify(vec![], &keys);
    assert_eq!(kinds(&findings), [FindingKind::Fork, FindingKind::Unanchored], "{findings:?}");
    assert_eq!(summary.status, Status::Warning);
    sealer.acknowledge(&keys);
    sealer.seal(false);
    assert_eq!(sealer.stored.verify(vec![], &keys).1.status, Status::Ok);
}

#[test]
fn a_key_that_a_row_tells_of_and_that_is_gone_is_missed() {
    let keys = Keys::new(&[1]);
    let mut sealer = Sealer::new(&keys);
    sealer.write_and_seal(3, &keys);
    let key = sealer.key.verifying_key().to_string();
    let row = sealer.write(None);
    row.event = "audit_started".into();
    row.reason = Some(format!("clean handover to {key}, vouched for by: mac"));
    authenticate(row, &keys);
    sealer.seal(false);
    assert_eq!(sealer.stored.verify(vec![], &keys).1.status, Status::Ok);
    // The log goes on elsewhere, and who does so takes the first key and all that it signed away.
    sealer.fork(&keys);
    sealer.previous = None;
    sealer.write_and_seal(3, &keys);
    sealer.acknowledge(&keys);
    sealer.seal(false);
    let mut stored = sealer.stored;
    stored.signers.remove(0);
    stored.checkpoints.retain(|one| one.signer_id > 1);
    let (findings, summary) = stored.verify(vec![], &keys);
    assert!(kinds(&findings).contains(&FindingKind::SignerMissing), "{findings:?}");
    assert_eq!(summary.status, Status::Critical);
}

#[test]
fn leaves_without_a_checkpoint_are_told_by_where_they_are() {
    let keys = Keys::new(&[1]);
    let mut sealer = Sealer::new(&keys);
    sealer.write_and_seal(5, &keys);
    // Of a transaction that lasted for hours: written long ago, numbered just now.
    let leaf = sealer.tree.size() as i64;
    sealer.write(Some(&keys)).leaf = Some(leaf);
    let found = |sealing| {
        let (findings, summary) = sealer.stored.verify_where(sealing, vec![], &keys);
        (kinds(&findings)[0], summary.status)
    };
    assert_eq!(found(Sealing::GoesOn), (FindingKind::NotCovered, Status::Critical));
    assert_eq!(found(Sealing::Nobody).1, Status::Warning);
    assert_eq!(found(Sealing::StandsStill), (FindingKind::NotYetCovered, Status::Ok));
}

#[test]
fn rows_are_written_without_a_mac_while_a_slow_transaction_makes_the_key() {
    let keys = Keys::new(&[1]);
    let mut sealer = Sealer::new(&keys);
    sealer.stored.rows.clear();
    // The transaction that makes the key, from its first row to its last.
    for id in [100, 300] {
        let row = sealer.write(None);
        (row.id, row.transaction_id) = (id, Some(77));
        authenticate(row, &keys);
    }
    let other = |sealer: &mut Sealer, id| {
        let row = sealer.write(None);
        (row.id, row.transaction_id) = (id, Some(78));
    };
    other(&mut sealer, 200);
    other(&mut sealer, 400);
    let found = |sealer: &Sealer| {
        kinds(&sealer.stored.verify(vec![], &keys).0)
            .into_iter()
            .filter(|kind| *kind == FindingKind::MacMissing)
            .count()
    };
    assert_eq!(found(&sealer), 0);
    // The first row of another one that has the key.
    let row = sealer.write(None);
    (row.id, row.transaction_id) = (500, None);
    authenticate(row, &keys);
    assert_eq!(found(&sealer), 0);
    other(&mut sealer, 600);
    assert_eq!(found(&sealer), 1, "whoever came later must have had it");
}

fn told(sealer: &mut Sealer, until: i64, keys: Option<&Keys>) {
    let row = sealer.write(None);
    row.event = "audit_findings_acknowledged".into();
    row.reason = Some("the key file was not there".into());
    row.value_count = Some(until);
    if let Some(keys) = keys {
        authenticate(row, keys);
    }
    sealer.seal(false);
}

#[test]
fn what_no_fault_need_be_is_good_once_somebody_has_said_why() {
    let keys = Keys::new(&[1]);
    let damaged = || {
        let mut sealer = Sealer::new(&keys);
        sealer.write_and_seal(5, &keys);
        sealer.write(None);
        let gap = sealer.write(None);
        gap.event = "audit_gap".into();
        authenticate(gap, &keys);
        sealer.seal(false);
        sealer.restart(&keys, false);
        sealer.write_and_seal(5, &keys);
        sealer
    };
    let status = |sealer: &Sealer| sealer.stored.verify(vec![], &keys).1.status;
    let mut sealer = damaged();
    assert_eq!(status(&sealer), Status::Warning);
    let size = sealer.tree.size() as i64;
    told(&mut sealer, size, Some(&keys));
    let (findings, summary) = sealer.stored.verify(vec![], &keys);
    assert_eq!(kinds(&findings), [FindingKind::Unanchored, FindingKind::Acknowledged]);
    assert_eq!(summary.status, Status::Ok);
    // It speaks of no later one.
    sealer.write(None);
    sealer.seal(false);
    assert_eq!(status(&sealer), Status::Warning);

    // Nobody says so without the audit key, of what is still to come, or of half of it.
    let mut sealer = damaged();
    told(&mut sealer, size, None);
    assert_eq!(status(&sealer), Status::Warning);
    let mut sealer = damaged();
    told(&mut sealer, size + 10, Some(&keys));
    assert_eq!(status(&sealer), Status::Warning);
    let mut sealer = damaged();
    told(&mut sealer, 7, Some(&keys));
    assert_eq!(status(&sealer), Status::Warning);

    // And of a forgery it says nothing.
    let mut sealer = damaged();
    told(&mut sealer, size, Some(&keys));
    sealer.stored.rows[2].actor = "mallory".into();
    assert_eq!(status(&sealer), Status::Critical);
    let mut sealer = damaged();
    sealer.restart(&Keys::new(&[1]), true);
    sealer.write_and_seal(1, &keys);
    let size = sealer.tree.size() as i64;
    told(&mut sealer, size, Some(&keys));
    assert_eq!(status(&sealer), Status::Critical, "a key with the MAC of another audit key");
}
