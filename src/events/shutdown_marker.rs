//! A file by which the next launcher knows that the last one left nothing undone. It lies where Postgres keeps
//! what it remembers over a shutdown; while a launcher runs it is not there, so that no copy of a running
//! server has it.

use std::path::PathBuf;

use crate::pg::session;

fn path() -> Option<PathBuf> {
    session::data_directory().map(|folder| folder.join("pg_stat/fieldcrypt_audit_clean"))
}

/// Whether it is there. It is not afterwards.
pub fn take() -> bool {
    path().is_some_and(|path| std::fs::remove_file(path).is_ok())
}

/// Leaves it.
pub fn leave() {
    if let Some(path) = path() {
        // Without it the next handover counts as unclean, which is only less welcome.
        let _ = std::fs::write(path, b"");
    }
}
