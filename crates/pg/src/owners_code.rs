//! Code of a table's owner, which runs where others have asked for something: its errors may be any that its
//! author likes, and must not be taken for the system.

use std::cell::Cell;

use fieldcrypt_error::{Error, Report, SqlState};
use pgrx::pg_sys::panic::CaughtError;

use super::report;

thread_local! {
    static OWNERS_CODE: Cell<bool> = const { Cell::new(false) };
}

/// Runs what may be code of a table's owner. An error in it may be any that its author likes: he must
/// not be taken for the system.
#[inline]
pub fn owners_code<R>(work: impl FnOnce() -> R) -> R {
    OWNERS_CODE.set(true);
    let result = work();
    OWNERS_CODE.set(false);
    result
}

/// Whether an error came out of [`owners_code`] since [`forget_owners_code`].
pub fn failed_in_owners_code() -> bool {
    OWNERS_CODE.get()
}

/// Forgets earlier errors.
pub fn forget_owners_code() {
    OWNERS_CODE.set(false);
}

/// Runs `work`, whose errors in code of a table's owner come out as ones that an EXCEPTION block with
/// WHEN OTHERS catches: an owner can raise `query_canceled` or `assert_failure`, which it does not, and
/// with that would end what concerns others too. A cancel of Postgres's own stays one.
pub fn catchable<R>(work: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
    pgrx::PgTryBuilder::new(std::panic::AssertUnwindSafe(work))
        .catch_others(|caught| {
            let report = report::of_caught(&caught);
            let is_cancel = report.sqlstate.0 == *b"57014";
            let is_real_cancel = is_cancel
                && matches!(&caught, CaughtError::PostgresError(error) if error.file().ends_with("postgres.c"));
            let escapes = is_cancel || report.sqlstate.0 == *b"P0004";
            if !failed_in_owners_code() || !escapes || is_real_cancel {
                caught.rethrow();
            }
            Err(Error::Postgres(Box::new(Report { sqlstate: SqlState(*b"P0001"), ..report })))
        })
        .execute()
}
