//! `fieldcrypt.master_key_file`: a file that only the server can read and no backup copies.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::process::geteuid;

use crate::error::Error;
use crate::pg::session;
use crate::settings;

/// Reads the file into `buffer`, after checking what was opened.
pub fn read(buffer: &mut [u8]) -> Result<usize, Error> {
    let path = Path::new(OsStr::from_bytes(settings::master_key_file().ok_or(Error::NoMasterKey)?));
    if !path.is_absolute() {
        return Err(refused("is not an absolute path", "Give the whole path, from /."));
    }
    // Not blocking, since a path may name a pipe that nobody writes to.
    let mut file = File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(|error| unreadable(&error))?;
    refuse_unless_private(&file)?;
    refuse_in_backups(&file, path)?;
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(&error)),
        }
    }
    Ok(length)
}

/// As Postgres treats its TLS key: 0600 if the server user's, 0640 if root's.
fn refuse_unless_private(file: &File) -> Result<(), Error> {
    let metadata = file.metadata().map_err(|error| unreadable(&error))?;
    if !metadata.is_file() {
        return Err(refused("is not a regular file", "Point it to a file."));
    }
    let (forbidden, hint) = match metadata.uid() {
        0 => (
            0o137,
            "chmod 0640 it, with the server's group. A secret of Docker or Kubernetes can't be changed where it is mounted: give it \
             mode 0440 and the server's group, or 0400 and the server's user, where it is declared; or let \
             fieldcrypt.master_key_command print it.",
        ),
        owner if owner == geteuid().as_raw() => (0o177, "chmod 0600 it."),
        _ => {
            return Err(refused(
                "belongs neither to the server's user nor to root",
                "chown it to the user that the server runs as, mode 0600.",
            ));
        }
    };
    if metadata.mode() & forbidden != 0 {
        return Err(refused("can be read or written by others", hint));
    }
    Ok(())
}

/// Base backups and file system snapshots copy the data directory, its tablespaces and WAL: a key
/// among them would lie beside what it protects.
fn refuse_in_backups(file: &File, path: &Path) -> Result<(), Error> {
    let opened = where_opened(file).or_else(|| fs::canonicalize(path).ok());
    let Some(data_directory) = session::data_directory() else { return Ok(()) };
    let mut copied = vec![data_directory.clone(), data_directory.join("pg_wal")];
    if let Ok(tablespaces) = fs::read_dir(data_directory.join("pg_tblspc")) {
        copied.extend(tablespaces.flatten().map(|entry| entry.path()));
    }
    let inside = copied
        .iter()
        .filter_map(|directory| fs::canonicalize(directory).ok())
        .any(|directory| opened.as_ref().is_none_or(|opened| opened.starts_with(&directory)));
    if inside {
        return Err(refused(
            "lies inside the data directory or a tablespace, which base backups copy",
            "Move it elsewhere, for instance to /etc/pg_fieldcrypt/master.key.",
        ));
    }
    Ok(())
}

/// The path of what was really opened, symbolic links resolved.
fn where_opened(file: &File) -> Option<PathBuf> {
    use std::os::fd::AsRawFd;
    fs::read_link(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())).ok()
}

fn unreadable(error: &std::io::Error) -> Error {
    let reason = match error.kind() {
        std::io::ErrorKind::NotFound => "names a file that does not exist".into(),
        std::io::ErrorKind::PermissionDenied => "names a file that the server may not read".into(),
        kind => format!("names a file that can't be read ({kind})"),
    };
    refused(
        &reason,
        "The server's user needs to own the file (mode 0600) and to be allowed into its directory.",
    )
}

fn refused(reason: &str, hint: &'static str) -> Error {
    Error::MasterKeySource { problem: format!("fieldcrypt.master_key_file {reason}"), hint }
}
