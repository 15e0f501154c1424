//! The numbers of Postgres's catalogs, their indexes and their columns that pgrx has no bindings for: `build.rs` reads them
//! out of the server's headers, under the names that they have there.
#![expect(non_upper_case_globals, reason = "the names of the headers")]

use pgrx::pg_sys::Oid;

include!(concat!(env!("OUT_DIR"), "/catalogs.rs"));
