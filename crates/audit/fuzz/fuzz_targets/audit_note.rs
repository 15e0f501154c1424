//! Texts that claim to be notes, checkpoints, introductions, keys, anchors, times, and bytes that claim
//! to be edges of a tree: read, written, and read again.

#![no_main]

use fieldcrypt_audit::verify::Anchor;
use fieldcrypt_audit::{
    Checkpoint, CompactRange, Frontier, InclusionProof, Introduction, LogId, Note, SignerStatement,
    SigningKey, VerifyingKey, sign_note, time,
};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

/// Nobody else has it, so nothing that the fuzzer makes up is signed by it.
static KEY: LazyLock<SigningKey> =
    LazyLock::new(|| SigningKey::from_seed("pg_fieldcrypt/log", &[0x4E; 32]).ok().unwrap());

fuzz_target!(|data: &[u8]| {
    if let Ok(edge) = Frontier::from_bytes(data) {
        assert_eq!(edge.to_bytes(), data);
        edge.root();
    }
    if let Ok(range) = CompactRange::from_bytes(data) {
        assert_eq!(range.to_bytes(), data);
        let mut tree = Frontier::new();
        assert_eq!(tree.append_range(&range).is_ok(), range.start() == 0);
    }
    let Ok(text) = str::from_utf8(data) else { return };
    if let Ok(note) = Note::parse(text) {
        assert_eq!(note.to_string(), text);
        assert!(note.verify(KEY.verifying_key()).is_err());
        if let Ok((statement, introduction)) = SignerStatement::open(&note) {
            assert_eq!(statement.to_text().as_deref(), Some(note.text()));
            // Whoever says that the key before vouches for it names one.
            assert!(introduction != Introduction::Predecessor || statement.previous.is_some());
            assert!(Checkpoint::parse(note.text()).is_err());
        }
    }
    if let Ok(checkpoint) = Checkpoint::parse(text) {
        assert_eq!(checkpoint.to_text(), text);
        checkpoint.hash();
        checkpoint.time();
        checkpoint.previous();
        if let Some(log) = checkpoint.log_id() {
            assert_eq!(log.origin(), checkpoint.origin);
        }
    }
    if let Ok(key) = VerifyingKey::parse(text) {
        assert_eq!(key.to_string(), text);
    }
    if let Some(log) = LogId::of_origin(text) {
        assert_eq!(log.origin(), text);
    }
    if let Some(at) = time::parse(text) {
        assert_eq!(time::to_text(at).as_deref(), Some(text));
    }
    if let Ok(proof) = InclusionProof::parse(text) {
        assert!(proof.verify(KEY.verifying_key()).is_err());
        assert!(InclusionProof::parse(&proof.to_json()).is_ok_and(|again| again == proof));
    }
    let _ = Anchor::parse(text);
    // What is signed is read as what was signed, or could not be signed at all.
    if let Ok(signed) = sign_note(text, &KEY) {
        let note = Note::parse(&signed);
        assert!(
            note.is_ok_and(|note| {
                note.text() == text && note.verify(KEY.verifying_key()).is_ok()
            })
        );
    }
});
