//! Files of master keys: made, shown, read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use fieldcrypt_envelope::MasterKey;
use fieldcrypt_envelope::master_key_text;
use zeroize::Zeroizing;

use crate::failure::Failure;

/// What the extension reads of a key file, too.
const MAX_LENGTH: usize = 32 * 1024;

/// Makes a file that did not exist, readable by its owner alone.
pub fn make(path: &Path) -> Result<bool, Failure> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    refuse_if_others_write(folder)?;
    let text = master_key_text::generate()
        .map_err(|_| Failure::usage("the operating system gave no random bytes"))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| Failure::file(path, error))?;
    let written = file.write_all(&text).and_then(|()| file.sync_all());
    // The name too must survive a power failure: a key that wrapped something must not be lost.
    written
        .and_then(|()| File::open(folder)?.sync_all())
        .map_err(|error| Failure::file(path, error))?;
    show_fingerprints(path)?;
    eprintln!("fieldcrypt: keep a copy of {} where no backup of the database is", path.display());
    Ok(true)
}

/// Who may rename files there could put another key in its place, or keep this one.
fn refuse_if_others_write(folder: &Path) -> Result<(), Failure> {
    const OTHERS_WRITE: u32 = 0o022;
    const STICKY: u32 = 0o1000;
    let mode = fs::metadata(folder).map_err(|error| Failure::file(folder, error))?.mode();
    if mode & OTHERS_WRITE != 0 && mode & STICKY == 0 {
        return Err(Failure::usage(format!(
            "{} is writable by others: no place for a master key",
            folder.display()
        )));
    }
    Ok(())
}

/// Prints a line for each key.
pub fn show_fingerprints(path: &Path) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    for key in read(path)? {
        writeln!(out, "{}", key.fingerprint().to_hex()).map_err(Failure::Output)?;
    }
    Ok(true)
}

/// The keys of a file.
pub fn read(path: &Path) -> Result<Vec<MasterKey>, Failure> {
    let problem = |what: String| Failure::usage(format!("{}: {what}", path.display()));
    let mut file = File::open(path).map_err(|error| Failure::file(path, error))?;
    let metadata = file.metadata().map_err(|error| Failure::file(path, error))?;
    if metadata.is_file() && metadata.mode() & 0o077 != 0 {
        eprintln!("fieldcrypt: {} can be read by others than its owner", path.display());
    }
    // All of the room at once: a buffer that grew would leave copies of the keys behind.
    let mut text = Zeroizing::new(vec![0; MAX_LENGTH + 1]);
    let mut length = 0;
    loop {
        match file.read(&mut text[length..]).map_err(|error| Failure::file(path, error))? {
            0 => break,
            read => length += read,
        }
    }
    if length > MAX_LENGTH {
        return Err(problem("longer than a file of master keys can be".into()));
    }
    master_key_text::parse(&text[..length]).map_err(|error| problem(format!("it holds {error}")))
}
