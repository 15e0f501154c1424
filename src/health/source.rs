//! Who else could reach the master key where it comes from.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{getegid, geteuid};

use crate::settings;

/// Something about a source of the master key that should be mended.
pub struct Weakness {
    /// Whether somebody can take the key's place now.
    pub is_critical: bool,
    /// What it is.
    pub detail: &'static str,
    /// What to do.
    pub hint: &'static str,
}

/// The setting that configures the source, and what is weak about it. What can't be looked at is not
/// weak here: the key then does not load, which another check says.
pub fn weaknesses() -> (&'static str, Vec<Weakness>) {
    let mut found = Vec::new();
    let source = if settings::master_key_is_unprotected() {
        found.push(Weakness {
            is_critical: true,
            detail: "fieldcrypt.master_key is set without pg_fieldcrypt in shared_preload_libraries: every role can read it",
            hint: "Take the setting away, treat this master key as disclosed, and use fieldcrypt.master_key_file.",
        });
        "fieldcrypt.master_key"
    } else if settings::master_key().is_some() {
        found.push(Weakness {
            is_critical: false,
            detail: "the master key stands in the server's configuration, which is copied, versioned and shown more easily than a key file",
            hint: "Write it to a file of mode 0600 in a directory of mode 0700, set fieldcrypt.master_key_file, and take fieldcrypt.master_key away.",
        });
        "fieldcrypt.master_key"
    } else if let Some(path) = settings::master_key_file() {
        look_at_file(Path::new(OsStr::from_bytes(path)), &mut found);
        "fieldcrypt.master_key_file"
    } else if let Some(command) = settings::master_key_command() {
        look_at_command(command, &mut found);
        "fieldcrypt.master_key_command"
    } else {
        ""
    };
    (source, found)
}

fn look_at_file(path: &Path, found: &mut Vec<Weakness>) {
    let Some(file) = metadata(path) else { return };
    if file.mode() & 0o040 != 0 && !is_own_group(&file) {
        found.push(Weakness {
            is_critical: false,
            detail: "the master key file is readable to the members of a group that is not the server's own",
            hint: "chgrp it to the group of the server's user.",
        });
    }
    let directories: Vec<Metadata> =
        names_of(path).iter().filter_map(|name| metadata(name.parent()?)).collect();
    if directories.iter().any(|directory| directory.mode() & 0o007 != 0) {
        found.push(Weakness {
            is_critical: false,
            detail: "the master key file lies in a directory that every user of the machine can look into",
            hint: "Move it into a directory of its own, of the server's user, and chmod that 0700.",
        });
    } else if directories
        .iter()
        .any(|directory| directory.mode() & 0o070 != 0 && !is_own_group(directory))
    {
        found.push(Weakness {
            is_critical: false,
            detail: "the master key file lies in a directory that the members of a group can look into, which is not the server's own",
            hint: "Move it into a directory of its own, of the server's user, and chmod that 0700.",
        });
    }
    if names_of(path).iter().any(|name| others_can_replace(name)) {
        found.push(Weakness {
            is_critical: true,
            detail: "a directory above the master key file can be written by others: they can take the file away or put another one in its place",
            hint: "Take the rights of group and others to write away from every directory above the file.",
        });
    }
}

/// The words of the command that are paths: what is run, and what that reads.
fn look_at_command(command: &[u8], found: &mut Vec<Weakness>) {
    let paths: Vec<PathBuf> = command
        .split(|byte| byte.is_ascii_whitespace() || b"'\"`$();|&<>=".contains(byte))
        .filter(|word| word.starts_with(b"/"))
        .map(|word| PathBuf::from(OsStr::from_bytes(word)))
        .filter(|path| metadata(path).is_some_and(|file| file.is_file()))
        .collect();
    if paths.iter().any(|path| {
        metadata(path).is_some_and(|file| others_can_write(&file)) || others_can_replace(path)
    }) {
        found.push(Weakness {
            is_critical: true,
            detail: "fieldcrypt.master_key_command names a file that others than root and the server's user can change: they can read the master key, or run what they like as the server",
            hint: "Let the file and all directories above it belong to root or the server's user, and chmod go-w them.",
        });
    }
    if paths.iter().any(|path| {
        metadata(path).is_some_and(|file| file.mode() & 0o111 == 0 && file.mode() & 0o004 != 0)
    }) {
        found.push(Weakness {
            is_critical: false,
            detail: "fieldcrypt.master_key_command reads a file that every user of the machine can read",
            hint: "If it holds the key, or what gives access to it: chmod 0600 it.",
        });
    }
}

/// The path, and the one behind its symbolic links.
fn names_of(path: &Path) -> BTreeSet<PathBuf> {
    [Some(path.to_path_buf()), fs::canonicalize(path).ok()].into_iter().flatten().collect()
}

/// Whether somebody else can rename or remove an entry on the way to a file.
fn others_can_replace(path: &Path) -> bool {
    const STICKY: u32 = 0o1000;
    names_of(path)
        .iter()
        .flat_map(|name| name.ancestors().skip(1))
        .filter_map(metadata)
        .any(|directory| directory.mode() & STICKY == 0 && others_can_write(&directory))
}

fn others_can_write(file: &Metadata) -> bool {
    let is_others = file.uid() != 0 && file.uid() != geteuid().as_raw();
    is_others || file.mode() & 0o002 != 0 || file.mode() & 0o020 != 0 && !is_own_group(file)
}

/// Groups of the system, and of the server.
fn is_own_group(file: &Metadata) -> bool {
    file.gid() == 0 || file.gid() == getegid().as_raw()
}

fn metadata(path: &Path) -> Option<Metadata> {
    fs::metadata(path).ok()
}
