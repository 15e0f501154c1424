//! Every door that SQL calls, one file for one file of `sql/`: arguments in, one call into a room, an answer
//! out. What is refused is recorded at the edge, in `pg::call`.

mod alerts;
mod approvals;
mod audit_log;
mod audit_seal;
mod audit_status;
mod audit_table;
mod audit_verification;
mod column_contexts;
mod column_migration;
mod context;
mod context_renames;
mod decrypted_views;
mod drops;
mod encrypted_text;
mod enforced_contexts;
mod fields;
mod health;
mod health_audit;
mod key_backup;
mod key_origins;
mod key_states;
mod key_usage;
mod keys;
mod master_key_rotation;
mod nodes;
mod operators;
mod protected_columns;
mod redaction;
mod reencryption_runs;
mod reencryption_steps;
mod report;
mod rotation;
mod statistics;
mod tenant;
#[path = "type.rs"]
mod types;
mod value_verification;
mod versions;
