//! Runs of re-encryption, as others see them.

use crate::error::Error;
use crate::pg::locks;

crate::pg::sql_functions! {
    hold_run(run: bigint!) -> void;
    release_run() -> void;
    held_run() -> bigint;
}

/// Shows to others that this session runs a re-encryption, until it ends or fails.
fn hold_run(run: i64) -> Result<(), Error> {
    locks::hold(run as u32)
}

/// The run of this session; -1 for none.
fn held_run() -> Result<i64, Error> {
    Ok(locks::held().map_or(-1, i64::from))
}

/// The run is over.
fn release_run() -> Result<(), Error> {
    locks::release();
    Ok(())
}
