//! The unsafe wall: everything that touches Postgres's C interfaces. One concern a file; what
//! leaves this folder is safe to call.

pub mod arrays;
pub mod audit_memory;
pub mod background;
pub mod call;
pub mod callbacks;
pub mod catalog;
pub mod client;
pub mod database_statements;
pub mod denials;
pub mod dependents;
pub mod encoding;
pub mod executor;
pub mod exit;
pub mod expression;
pub mod finally;
pub mod heap;
pub mod json;
pub mod locks;
pub mod log_hook;
pub mod memory;
pub mod network;
pub mod report;
pub mod row_update;
pub mod session;
pub mod set;
pub mod setting;
pub mod shape;
pub mod shared_memory;
pub mod spi;
pub mod statements;
pub mod statistics_memory;
pub mod triggers;
pub mod tuple;
pub mod values;
pub mod version;
