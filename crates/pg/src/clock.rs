//! Postgres's clock: microseconds since 2000-01-01.

use fieldcrypt_audit::time::UNTIL_2000;
use pgrx::pg_sys;

/// A function that only reads a variable, without pgrx's guard against errors, which on the row path would
/// cost more than it does.
mod unguarded {
    unsafe extern "C" {
        pub fn GetCurrentStatementStartTimestamp() -> i64;
    }
}

/// When the client's statement began, in Postgres's time: another one, another time.
#[inline]
pub fn statement_start() -> i64 {
    // SAFETY: reads a variable of the backend.
    unsafe { unguarded::GetCurrentStatementStartTimestamp() }
}

/// Microseconds since 2000-01-01, Postgres's own time.
pub fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// Postgres's time as microseconds since 1970. An infinite one, which is never written, becomes some other
/// number.
pub fn unix_time(time: i64) -> i64 {
    time.wrapping_add(UNTIL_2000)
}

/// The other way round.
pub fn from_unix_time(time: i64) -> i64 {
    time.wrapping_sub(UNTIL_2000)
}

/// Postgres's time in RFC 3339, UTC, with microseconds.
pub fn iso_time(time: i64) -> String {
    fieldcrypt_audit::time::to_text(unix_time(time)).unwrap_or_default()
}
