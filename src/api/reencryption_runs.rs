//! Runs of re-encryption, as others see them.

use crate::error::Error;
use crate::pg::locks;

crate::pg::sql_functions! {
    hold_run(run: bigint!) -> void;
    release_run() -> void;
}

/// Shows to others that this session runs a re-encryption, until it ends or fails.
fn hold_run(run: i64) -> Result<(), Error> {
    locks::hold(run as u32)
}

/// The run is over.
fn release_run() -> Result<(), Error> {
    locks::release();
    Ok(())
}
