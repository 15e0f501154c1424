//! pg_fieldcrypt: encrypts single fields inside PostgreSQL.
//!
//! This crate is the glue between Postgres and the cores. The SQL surface is in `sql/`; every function that it
//! names is defined in [`api`]. A room names only those below it: `CONTRIBUTING.md` draws the floors. `unsafe`
//! lives in the crate `fieldcrypt-pg`, mechanisms of Postgres.
#![deny(unsafe_code)]

mod api;
mod audit;
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
    events::init();
    usage::init();
    audit::init();
    health::init();
    redaction::init();
    settings::init();
    // After the redaction, so that a refusal is noticed before its line is masked.
    events::listen_to_denials();
    pg::init();
}

extension_sql_file!("../sql/schema.sql", name = "schema", bootstrap);
extension_sql_file!("../sql/type.sql", name = "type", requires = ["schema"]);
extension_sql_file!("../sql/audit_log.sql", name = "audit_log", requires = ["type"]);
extension_sql_file!("../sql/keys.sql", name = "keys", requires = ["audit_log"]);
extension_sql_file!("../sql/fields.sql", name = "fields", requires = ["keys"]);
extension_sql_file!("../sql/approvals.sql", name = "approvals", requires = ["fields"]);
extension_sql_file!("../sql/key_states.sql", name = "key_states", requires = ["approvals"]);
extension_sql_file!("../sql/rotation.sql", name = "rotation", requires = ["key_states"]);
extension_sql_file!(
    "../sql/encrypted_columns.sql",
    name = "encrypted_columns",
    requires = ["rotation"]
);
extension_sql_file!(
    "../sql/column_contexts.sql",
    name = "column_contexts",
    requires = ["encrypted_columns"]
);
extension_sql_file!(
    "../sql/reencryption_tables.sql",
    name = "reencryption_tables",
    requires = ["column_contexts"]
);
extension_sql_file!(
    "../sql/reencryption_runs.sql",
    name = "reencryption_runs",
    requires = ["reencryption_tables"]
);
extension_sql_file!(
    "../sql/reencryption_steps.sql",
    name = "reencryption_steps",
    requires = ["reencryption_runs"]
);
extension_sql_file!(
    "../sql/reencryption.sql",
    name = "reencryption",
    requires = ["reencryption_steps"]
);
extension_sql_file!("../sql/key_usage.sql", name = "key_usage", requires = ["reencryption"]);
extension_sql_file!(
    "../sql/master_key_rotation.sql",
    name = "master_key_rotation",
    requires = ["key_usage"]
);
extension_sql_file!(
    "../sql/key_origins.sql",
    name = "key_origins",
    requires = ["master_key_rotation"]
);
extension_sql_file!("../sql/key_backup.sql", name = "key_backup", requires = ["key_origins"]);
extension_sql_file!(
    "../sql/restored_states.sql",
    name = "restored_states",
    requires = ["key_backup"]
);
extension_sql_file!("../sql/schedule.sql", name = "schedule", requires = ["restored_states"]);
extension_sql_file!("../sql/audit_status.sql", name = "audit_status", requires = ["schedule"]);
extension_sql_file!("../sql/audit_seal.sql", name = "audit_seal", requires = ["audit_status"]);
extension_sql_file!(
    "../sql/audit_verification.sql",
    name = "audit_verification",
    requires = ["audit_seal"]
);
extension_sql_file!(
    "../sql/statistics.sql",
    name = "statistics",
    requires = ["audit_verification"]
);
extension_sql_file!("../sql/health.sql", name = "health", requires = ["statistics"]);
extension_sql_file!("../sql/health_keys.sql", name = "health_keys", requires = ["health"]);
extension_sql_file!("../sql/health_server.sql", name = "health_server", requires = ["health_keys"]);
extension_sql_file!("../sql/health_audit.sql", name = "health_audit", requires = ["health_server"]);
extension_sql_file!("../sql/alerts.sql", name = "alerts", requires = ["health_audit"]);
extension_sql_file!("../sql/report.sql", name = "report", requires = ["alerts"]);
extension_sql_file!("../sql/redaction.sql", name = "redaction", requires = ["report"]);
extension_sql_file!("../sql/report_figures.sql", name = "report_figures", requires = ["redaction"]);
extension_sql_file!(
    "../sql/report_audit.sql",
    name = "report_audit",
    requires = ["report_figures"]
);
extension_sql_file!("../sql/audit_table.sql", name = "audit_table", requires = ["report_audit"]);
extension_sql_file!("../sql/grants.sql", name = "grants", requires = ["audit_table"], finalize);
