//! `verify-log` and `verify-proof`, run on files; what a verification finds is tested in `crates/audit`,
//! and on what a real server exports in the cluster tests.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const LOG: &str = include_str!("../../audit/fuzz/seeds/audit_export/log");
const CHECKPOINT: &str = include_str!("../../audit/fuzz/seeds/audit_note/checkpoint");
const KEY: &str = include_str!("../../audit/fuzz/seeds/audit_note/key");
const PROOF: &str = include_str!("../../audit/fuzz/seeds/audit_note/proof");
/// Of nobody here (from C2SP signed-note).
const OTHER_KEY: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";

#[test]
fn a_good_log_is_good() {
    let (status, out, _) = run(&["verify-log", "-"], LOG);
    assert_eq!(status, 0, "{out}");
    assert!(out.starts_with("17 sealed rows, 0 not sealed, 0 authentic (no --master-key"), "{out}");
    assert!(out.contains("4 checkpoints, the last over 17 rows\n"), "{out}");
    assert!(out.contains("ok       unanchored: "), "{out}");
    assert!(
        out.ends_with("NOT ALL COULD BE CHECKED, or it needs somebody's word: see the warnings\n")
    );
}

#[test]
fn what_is_known_outside_is_compared() {
    let room = Room::new("known");
    let checkpoint = room.write("checkpoint", CHECKPOINT);
    let key = room.write("key", KEY);
    let log = room.write("log", LOG);
    for arguments in [
        vec!["--checkpoint", &checkpoint],
        vec!["--checkpoint", &checkpoint, "--key", KEY],
        vec!["--key", &key],
    ] {
        let (status, out, _) = run(&[["verify-log", &log].as_slice(), &arguments].concat(), "");
        assert_eq!(status, 0, "{out}");
        assert!(out.contains("ok       anchored"), "{out}");
    }
    let (status, out, _) = run(&["verify-log", &log, "--key", OTHER_KEY], "");
    assert_eq!(status, 1);
    assert!(out.contains("critical anchor_mismatch"), "{out}");
    assert!(out.ends_with("BAD: the log is not what was sealed\n"), "{out}");
}

#[test]
fn a_forged_log_is_bad() {
    let forged = LOG.replace("\"actor\":\"app\"", "\"actor\":\"nobody\"");
    let (status, out, _) = run(&["verify-log", "-"], &forged);
    assert_eq!(status, 1);
    assert!(out.contains("critical root_mismatch leaf "), "{out}");
    // What a forger writes does not steer the terminal of who reads of it.
    let forged = LOG.replacen("pg_fieldcrypt/", "pg_fieldcrypt/\u{1b}[2J", 1);
    let (status, out, err) = run(&["verify-log", "-"], &forged);
    assert_ne!(status, 0);
    assert!(!out.contains('\u{1b}') && !err.contains('\u{1b}'));
}

#[test]
fn what_can_not_be_verified_is_not_called_bad() {
    let room = Room::new("unusable");
    let log = room.write("log", LOG);
    let cut = &LOG[..LOG.len() - 30];
    for (arguments, input, problem) in [
        (vec!["verify-log", "-"], "", "no export of an audit log"),
        (vec!["verify-log", "-"], "{}\n", "no export of an audit log"),
        (vec!["verify-log", "-"], cut, "is not one of an export"),
        (vec!["verify-log", "/nowhere"], "", "No such file"),
        (vec!["verify-log", &log, "--checkpoint", &log], "", "no checkpoint, and no public key"),
        (vec!["verify-log", &log, "--checkpoint", "/dev/null"], "", "no checkpoint"),
        (vec!["verify-log", &log, "--key", "x"], "", "--key takes a public key"),
        (vec!["verify-log", &log, "--key", &log], "", "no public key"),
        (vec!["verify-log", &log, "--master-key", &log], "", "--keys"),
        (vec!["verify-log", &log, "--keys", &log], "", "--master-key"),
        (vec!["verify-proof", &log], "", "no proof of inclusion"),
        (vec!["verify-proof", "-"], PROOF, "names no public key"),
    ] {
        let (status, out, err) = run(&arguments, input);
        assert_eq!((status, out.as_str()), (2, ""), "{arguments:?}: {err}");
        assert!(err.contains(problem), "{arguments:?}: {err}");
    }
}

#[test]
fn a_proof_proves_for_the_key_that_signed() {
    let proof = PROOF.replace("\"public_key\": \"x\"", &format!("\"public_key\": \"{KEY}\""));
    assert_ne!(proof, PROOF);
    let (status, out, err) = run(&["verify-proof", "-"], &proof);
    assert_eq!(status, 0, "{out}{err}");
    assert!(out.contains("is leaf 3 of the 17 rows of log pg_fieldcrypt/"), "{out}");
    assert!(out.contains("GOOD, if that is a key of the log"), "{out}");
    let (status, out, _) = run(&["verify-proof", "-", "--key", KEY], &proof);
    assert_eq!(status, 0);
    assert!(out.ends_with("GOOD: signed by the key that was given\n"), "{out}");
    let (status, out, _) = run(&["verify-proof", "-", "--key", OTHER_KEY], &proof);
    assert_eq!(status, 1);
    assert!(out.starts_with("BAD: its checkpoint does not count as signed by "), "{out}");
    let forged = proof.replace("\"actor\": \"app\"", "\"actor\": \"x\"");
    let (status, out, _) = run(&["verify-proof", "-", "--key", KEY], &forged);
    assert_eq!(status, 1);
    assert!(out.starts_with("BAD: the checkpoint was not signed over this row"), "{out}");
}

/// A folder.
struct Room(PathBuf);

impl Room {
    fn new(name: &str) -> Self {
        let name = format!("verify-log-{}-{name}", std::process::id());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn write(&self, name: &str, content: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Exit status, standard output and standard error.
fn run(arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_fieldcrypt"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may not read what it has no use for.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}
