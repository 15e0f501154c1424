//! pg_fieldcrypt: encrypts single fields inside PostgreSQL.
//!
//! This crate is the glue between Postgres and the core, `crates/envelope`. The SQL surface is in
//! `sql/`, put together by `make` in the order of `sql/order.txt`; every function that it names is defined
//! in one of the modules below. `unsafe` lives in [`pg`].

mod api;
mod audit;
mod datatype;
mod error;
mod health;
mod keyring;
mod master_key;
mod pg;
mod redaction;
mod report;
mod rotation;
mod settings;
mod usage;

use pgrx::prelude::*;

pgrx::pg_module_magic!(name, version);

/// Called when the library is loaded: by the postmaster with `shared_preload_libraries`, otherwise
/// by a backend at its first call into the extension. Draws nothing random and opens no file.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    audit::init();
    usage::init();
    health::init();
    redaction::init();
    settings::init();
    pg::shared_memory::init();
    pg::background::init();
    pg::denials::init();
    pg::callbacks::init();
}

// What cargo-pgrx packs would lack all of `sql/`, without a word. So it says so when it is created.
extension_sql!(
    "DO $$ BEGIN RAISE EXCEPTION 'this was packed by cargo pgrx, without the SQL of pg_fieldcrypt: use make package'; END $$;",
    name = "not_by_cargo_pgrx"
);
