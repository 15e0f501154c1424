//! Whether the master key can be read, said in the server log when the server starts and after each reload: who starts
//! it learns it then, not from the first user's error.

use crate::error::{Error, Report};
use crate::pg::{background, report};

/// Registers the process, with preload.
pub fn init() {
    background::init_key_watch(run);
}

/// Runs until the server stops. Keeps nothing of the key.
fn run() {
    background::forbid_core_dumps();
    let mut is_good = look(true);
    while background::wait_for_reload() {
        let was_good = std::mem::replace(&mut is_good, look(false));
        if is_good && !was_good {
            report::log("pg_fieldcrypt: the master key can be read");
        }
    }
}

/// Reads the source as a session does, and tells what it would be told.
fn look(is_start: bool) -> bool {
    let problem = match super::load() {
        Ok(_) => return true,
        // It was cut short, for no fault of the key's.
        Err(_) if background::is_stopping() => return false,
        Err(error) => error,
    };
    // A server may have none yet: that is worth one line.
    let is_fault = !matches!(problem, Error::NoMasterKey);
    let told = problem.report();
    let told = Report { message: format!("pg_fieldcrypt: {}", told.message), ..told };
    if is_fault {
        report::warn(&told);
    } else if is_start {
        report::log_whole(&told);
    }
    false
}
