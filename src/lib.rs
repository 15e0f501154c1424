//! pg_fieldcrypt: encrypts single fields inside PostgreSQL.
//!
//! This crate is the glue between Postgres and the cores in `crates/`. The SQL surface is in `sql/`, put together
//! by `make` in the order of `sql/order.txt`; every function that it names is defined in [`api`]. A room names only
//! those below it: `CONTRIBUTING.md` draws the floors. `unsafe` lives in the crate `fieldcrypt-pg`, mechanisms of
//! Postgres.
#![deny(unsafe_code)]

mod api;
mod audit;
mod columns;
mod events;
mod fields;
mod health;
mod keyring;
mod lifecycle;
mod master_key;
mod redaction;
mod rotation;
mod settings;
mod usage;

use fieldcrypt_error as error;
use fieldcrypt_pg as pg;
use pgrx::prelude::*;

pgrx::pg_module_magic!(name, version);

/// Called when the library is loaded: by the postmaster with `shared_preload_libraries`, otherwise
/// by a backend at its first call into the extension. Draws nothing random and opens no file.
///
/// The order is that in which the rooms are told of the ends of transactions: use is told before the keys that
/// it was of are gone.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    pg::call::silence_panics();
    events::init();
    usage::init();
    keyring::init();
    fields::init();
    master_key::init();
    lifecycle::init();
    audit::init();
    health::init();
    redaction::init();
    settings::init();
    // After the redaction, so that a refusal is noticed before its line is masked.
    events::listen_to_denials();
    pg::init();
}

// What cargo-pgrx packs would lack all of `sql/`, without a word. So it says so when it is created.
extension_sql!(
    "DO $$ BEGIN RAISE EXCEPTION 'this was packed by cargo pgrx, without the SQL of pg_fieldcrypt: use make package'; END $$;",
    name = "not_by_cargo_pgrx"
);
