//! The version of the library, and of what this database has of the extension. A check of health compares them; a database
//! that has no such check yet is told of by the library.

use std::cell::Cell;

use crate::error::Error;
use crate::pg::callbacks::transaction_serial;
use crate::pg::{encoding, report, spi};

/// The version of this library.
pub const LIBRARY: &str = env!("CARGO_PKG_VERSION");

thread_local! {
    /// The transaction that was warned last.
    static WARNED: Cell<u64> = const { Cell::new(0) };
}

/// Warns, once a transaction, where this database is of a version from before the check `extension_version`.
pub fn warn_of_older_catalog() -> Result<(), Error> {
    if WARNED.replace(transaction_serial()) == transaction_serial() {
        return Ok(());
    }
    let catalog = spi::first_row(
        "SELECT e.extversion FROM pg_catalog.pg_extension AS e
          WHERE e.extname OPERATOR(pg_catalog.=) 'pg_fieldcrypt'
            AND pg_catalog.to_regprocedure('fieldcrypt_internal.check_extension_version(pg_catalog.jsonb)') IS NULL",
        &[],
        |row| row.bytes(1).map(encoding::lossy),
    )?;
    if let Some(catalog) = catalog {
        report::warn(&Error::CatalogIsOlder { catalog, library: LIBRARY }.report());
    }
    Ok(())
}
