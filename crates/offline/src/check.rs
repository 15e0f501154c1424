//! `fieldcrypt check`: a table of the keys in an export, and a verdict.

use std::io::{self, Write};

use crate::failure::Failure;
use crate::keys::{KeyProblem, Keys};

/// Prints the table; whether every key that is not destroyed opens.
pub fn check(keys: &Keys) -> Result<bool, Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let (mut open, mut destroyed, mut failed) = (0u64, 0u64, 0u64);
    let mut write = |line: String| writeln!(out, "{line}").map_err(Failure::Output);
    let contents = keys.contents();
    write(format!(
        "export of {}, database \"{}\" of cluster {}",
        contents.created_at().as_str(),
        contents.database().name.escape_debug(),
        contents.database().system_identifier
    ))?;
    for fingerprint in keys.vouching() {
        write(format!("authentic by master key {}", fingerprint.to_hex()))?;
    }
    if !contents.states_confirmed() {
        write("made while the key states were not confirmed after a restore".into())?;
    }
    write(format!(
        "{:>19} {:>7} {:<11} {:<32} {:<14} tenant",
        "key id", "version", "state", "master key", "verdict"
    ))?;
    for key in contents.keys() {
        let verdict = match keys.open(key) {
            Ok(_) => {
                open += 1;
                "opens"
            }
            Err(KeyProblem::Destroyed) => {
                destroyed += 1;
                "destroyed"
            }
            Err(problem) => {
                failed += 1;
                match problem {
                    KeyProblem::NoMasterKey => "NO MASTER KEY",
                    KeyProblem::UnknownAlgorithm => "UNKNOWN SUITE",
                    _ => "DOES NOT OPEN",
                }
            }
        };
        write(format!(
            "{:>19} {:>7} {:<11} {:<32} {:<14} {}",
            key.key_id.to_string(),
            key.version,
            key.state.name(),
            key.master_key.to_hex(),
            verdict,
            key.tenant.escape_debug()
        ))?;
    }
    write(format!(
        "{}: {} keys, {open} open, {destroyed} destroyed, {failed} do not open",
        if failed == 0 { "GOOD" } else { "BAD" },
        contents.keys().len()
    ))?;
    out.flush().map_err(Failure::Output)?;
    Ok(failed == 0)
}
