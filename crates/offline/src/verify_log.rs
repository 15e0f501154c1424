//! `fieldcrypt verify-log` and `verify-proof`: what an audit log claims, checked away from its server.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use fieldcrypt_audit::verify::{Anchor, AuditKeys, Finding, Status, Summary};
use fieldcrypt_audit::{AuditKey, InclusionProof, NotProven, VerifyingKey, export};
use fieldcrypt_envelope::KeyId;

use crate::failure::Failure;
use crate::keys::Keys;

/// Above any checkpoint, key or proof.
const LONGEST_TEXT: u64 = 16 * 1024 * 1024;

#[derive(clap::Args)]
pub struct VerifyLog {
    /// The export; `-` is standard input
    export: PathBuf,
    /// A checkpoint that was kept outside of the server (may be given more than once)
    #[arg(long, value_name = "PATH")]
    checkpoint: Vec<PathBuf>,
    /// A public key of the log that was recorded outside of the server: the key itself, or a file
    /// that holds it (may be given more than once)
    #[arg(long, value_name = "KEY")]
    key: Vec<String>,
    /// A file of master keys, to check that rows are authentic (may be given more than once)
    #[arg(long, value_name = "PATH", requires = "keys")]
    master_key: Vec<PathBuf>,
    /// With --master-key: the file that holds what `export_keys()` gave
    #[arg(long, value_name = "PATH", requires = "master_key")]
    keys: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct VerifyProof {
    /// The proof; `-` is standard input
    proof: PathBuf,
    /// The log's public key, recorded outside of the server: the key itself, or a file that holds it
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
}

/// Audit keys of an export of keys, opened as they are needed.
struct Exported<'a> {
    keys: Option<&'a Keys>,
    open: HashMap<i64, Option<AuditKey>>,
}

impl AuditKeys for Exported<'_> {
    fn is_mac_of(&mut self, key_id: i64, message: &[u8], mac: &[u8; 32]) -> Option<bool> {
        let keys = self.keys;
        let key = self
            .open
            .entry(key_id)
            .or_insert_with(|| KeyId::new(key_id).and_then(|key_id| keys?.audit_key(key_id)));
        Some(key.as_ref()?.is_mac_of(message, mac))
    }
}

/// Whether nothing is wrong with the log.
pub fn verify_log(arguments: &VerifyLog) -> Result<bool, Failure> {
    let mut anchors = Vec::new();
    for key in &arguments.key {
        anchors.push(Anchor::key(public_key(key)?));
    }
    for path in &arguments.checkpoint {
        let read = Anchor::parse(&text_of(path)?)
            .ok()
            .filter(|read| !read.is_empty())
            .ok_or_else(|| problem(path, "no checkpoint, and no public key"))?;
        anchors.extend(read);
    }
    let keys = match &arguments.keys {
        Some(export) => Some(Keys::read(export, &arguments.master_key)?),
        None => None,
    };
    let mut audit_keys = Exported { keys: keys.as_ref(), open: HashMap::new() };
    let path = &arguments.export;
    let input = BufReader::with_capacity(1 << 18, open(path)?);
    let (findings, summary) = export::verify(input, anchors, &mut audit_keys)
        .map_err(|unusable| problem(path, unusable))?;
    report(&findings, &summary, keys.is_some()).map_err(Failure::Output)?;
    // Without keys nobody expected their MACs to be checked.
    let unasked = ["mac_not_checked", "signer_not_checked"];
    let is_bad = |finding: &Finding| {
        finding.status() != Status::Ok
            && (keys.is_some() || !unasked.contains(&finding.kind.name()))
    };
    Ok(!findings.iter().any(is_bad))
}

fn report(findings: &[Finding], summary: &Summary, has_keys: bool) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    writeln!(
        out,
        "{} sealed rows, {} not sealed, {} authentic{}; {} checkpoints, the last over {} rows",
        summary.sealed_rows,
        summary.unsealed_rows,
        summary.authentic_rows,
        if has_keys { "" } else { " (no --master-key and --keys: MACs are not checked)" },
        summary.checkpoints,
        summary.size
    )?;
    if let Some(root) = summary.root {
        writeln!(out, "root {}", hexadecimal(&root))?;
    }
    writeln!(out, "known from outside: the first {} rows", summary.anchored_size)?;
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| std::cmp::Reverse(finding.status()));
    for finding in sorted {
        let leaf = finding.leaf.map(|leaf| format!(" leaf {leaf}")).unwrap_or_default();
        let id = finding.log_id.map(|id| format!(" id {id}")).unwrap_or_default();
        // What a forger wrote must not steer a terminal.
        writeln!(
            out,
            "{:<8} {}{leaf}{id}: {}",
            finding.status().name(),
            finding.kind.name(),
            printable(&finding.detail)
        )?;
    }
    let verdict = match summary.status {
        Status::Critical => "BAD: the log is not what was sealed",
        Status::Warning => {
            "NOT ALL COULD BE CHECKED, or it needs somebody's word: see the warnings"
        }
        Status::Ok => "GOOD",
    };
    writeln!(out, "{verdict}")?;
    out.flush()
}

/// Whether the proof proves.
pub fn verify_proof(arguments: &VerifyProof) -> Result<bool, Failure> {
    let path = &arguments.proof;
    let proof = InclusionProof::parse(&text_of(path)?)
        .map_err(|_| problem(path, "no proof of inclusion"))?;
    let (checkpoint, _) = proof.stated().map_err(|_| problem(path, "no proof of inclusion"))?;
    let named = proof.public_key().map_err(|_| problem(path, "it names no public key"))?;
    let key = match &arguments.key {
        Some(key) => public_key(key)?,
        None => named,
    };
    let verdict = proof.verify(&key);
    let mut out = io::stdout().lock();
    let mut say = |line: String| writeln!(out, "{line}").map_err(Failure::Output);
    match verdict {
        Ok(()) => {
            let row = proof.row();
            say(format!(
                "row {}: {} at {} by {}",
                row.id,
                printable(&row.event),
                fieldcrypt_audit::time::to_text(row.at).unwrap_or_default(),
                printable(&row.actor)
            ))?;
            say(format!(
                "is leaf {} of the {} rows of log {}",
                row.leaf.unwrap_or_default(),
                checkpoint.size,
                checkpoint.origin
            ))?;
            if let Some(time) = checkpoint.time().and_then(fieldcrypt_audit::time::to_text) {
                say(format!("by its checkpoint of {time}"))?;
            }
            if arguments.key.is_some() {
                say("GOOD: signed by the key that was given".into())?;
            } else {
                say(format!("signed by {key}"))?;
                say("GOOD, if that is a key of the log: compare it with one that was recorded outside (--key)".into())?;
            }
        }
        Err(NotProven::NotSigned(why)) => {
            say(format!("BAD: its checkpoint does not count as signed by {key}: {why}"))?;
        }
        Err(NotProven::NotIncluded) => {
            say("BAD: the checkpoint was not signed over this row: it, its number or the path was changed".into())?;
        }
    }
    Ok(verdict.is_ok())
}

fn public_key(text: &str) -> Result<VerifyingKey, Failure> {
    if let Ok(key) = VerifyingKey::parse(text.trim()) {
        return Ok(key);
    }
    let path = Path::new(text);
    if !path.is_file() {
        return Err(Failure::usage(
            "--key takes a public key (name+id+base64), or a file with one",
        ));
    }
    VerifyingKey::parse(text_of(path)?.trim()).map_err(|_| problem(path, "no public key"))
}

fn open(path: &Path) -> Result<Box<dyn Read>, Failure> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin().lock()));
    }
    Ok(Box::new(File::open(path).map_err(|error| Failure::file(path, error))?))
}

fn text_of(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    open(path)?
        .take(LONGEST_TEXT)
        .read_to_string(&mut text)
        .map_err(|error| Failure::file(path, error))?;
    Ok(text)
}

fn problem(path: &Path, what: impl std::fmt::Display) -> Failure {
    Failure::usage(format!("{}: {what}", path.display()))
}

fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
