//! The unsafe wall: everything that touches Postgres's C interfaces. One concern a file; what leaves this
//! crate is safe to call. It names nothing of the extension but its errors: who wants to be told of
//! something registers.

pub mod alterations;
pub mod apart;
pub mod arrays;
pub mod audit_memory;
pub mod background;
pub mod call;
pub mod callbacks;
mod catalogs;
pub mod client;
pub mod clock;
mod copy_context;
pub mod database_statements;
pub mod declarations;
pub mod denials;
pub mod dependents;
pub mod drops;
pub mod encoding;
pub mod executor;
pub mod exit;
pub mod expression;
pub mod extension;
pub mod finally;
pub mod heap;
pub mod invalidations;
pub mod json;
pub mod key_locks;
pub mod key_table;
pub mod key_values;
pub mod known_relations;
mod lasting;
pub mod locks;
pub mod log_hook;
pub mod log_insert;
pub mod log_table;
pub mod marks;
pub mod memory;
mod moments;
pub mod network;
pub mod nodes;
pub mod owners_code;
pub mod plaintexts;
pub mod relations;
pub mod report;
pub mod reserve;
pub mod roles;
pub mod row_update;
pub mod scan;
pub mod schemas;
pub mod security;
pub mod session;
pub mod set;
pub mod setting;
pub mod setting_lock;
pub mod shape;
pub mod shared_memory;
pub mod spi;
pub mod sql;
mod statement_begins;
pub mod statements;
pub mod statistics_memory;
mod syscache;
pub mod temporary;
pub mod text_forms;
pub mod text_input;
pub mod transaction;
pub mod triggers;
pub mod tuple;
pub mod twins;
pub mod values;
pub mod version;
pub mod views;

/// Registers with Postgres. After all rooms have registered here: the last settings are defined, and all of
/// shared memory was asked for.
pub fn init() {
    version::reserve_setting_prefix();
    shared_memory::init();
    security::init();
    callbacks::init();
    invalidations::init();
}
