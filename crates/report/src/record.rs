//! The document of `fieldcrypt.compliance_report()`: docs/compliance-report.md says what each figure is.
//!
//! What is missing is empty, so that a page of an older document can be made; what is new is left aside.

use std::iter::Sum;

use serde::{Deserialize, Deserializer};

/// What `format` says.
pub const FORMAT: &str = "pg_fieldcrypt compliance report";
/// What `version` says.
pub const VERSION: i64 = 1;

/// A number of something. The document's sums have no limit; what no page needs to tell apart ends at
/// the largest `i64`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Count(pub i64);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = serde_json::Number::deserialize(deserializer)?;
        // `as` saturates.
        Ok(Self(number.as_i64().or_else(|| number.as_f64().map(|float| float as i64)).unwrap_or(0)))
    }
}

impl<'a> Sum<&'a Count> for Count {
    fn sum<I: Iterator<Item = &'a Count>>(counts: I) -> Self {
        Self(counts.fold(0, |sum, count| sum.saturating_add(count.0)))
    }
}

/// The first rows of a list, and how many there are.
#[derive(Deserialize)]
#[serde(default)]
pub struct List<T> {
    pub total: Count,
    pub rows: Vec<T>,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { total: Count(0), rows: Vec::new() }
    }
}

/// Records of the document, every field of which may be missing.
macro_rules! records {
    ($($name:ident { $($field:ident: $type:ty,)* })*) => {$(
        #[derive(Deserialize, Default)]
        #[serde(default)]
        pub struct $name { $(pub $field: $type,)* }
    )*};
}

/// A text that may be null.
pub type Text = Option<String>;

records! {
    Report {
        format: String, version: i64, generated: Generated, period: Period, scope: Scope,
        rows_listed_at_most: Count, requirements: Vec<Requirement>, limits: Vec<String>,
        cryptography: Cryptography, keys: Keys, master_keys: MasterKeys, rotation: Rotation,
        reencryption: Reencryption, destruction: Destruction, access: Access, r#use: Use,
        approvals: Approvals, exports: Exports, audit_log: AuditLog, verification: Verification,
        health: Health,
    }
    Generated {
        at: Text, by: String, role: String, database: String, system_identifier: Text,
        is_standby: bool, extension_version: Text, server_version: Text,
    }
    Period { from: Text, to: Text, }
    Scope { tenant: Text, }
    Requirement { standard: String, section: String, title: String, figures: Vec<String>, note: String, }

    Cryptography { supports: Vec<String>, algorithms: Vec<Algorithm>, }
    Algorithm { r#use: String, algorithm: String, key_bits: Option<Count>, standard: String, }

    Keys {
        supports: Vec<String>, totals: KeyTotals, algorithms: Vec<KeysOfAlgorithm>, default_policy: String,
        own_policies: Count, ages: Vec<Age>, tenants: List<Tenant>, attention: List<Key>,
    }
    KeyTotals {
        keys: Count, field_keys: Count, audit_keys: Count, loose_keys: Count, tenants: Count,
        tenants_without_active_key: Count, tenants_shredded: Count, active: Count, deactivated: Count,
        suspended: Count, compromised: Count, destroyed: Count, destroyed_in_period: Count,
        destruction_scheduled: Count, created_in_period: Count, overdue: Count,
    }
    KeysOfAlgorithm { algorithm: String, keys: Count, }
    Age { from_days: Count, to_days: Option<Count>, keys: Count, overdue: Count, }
    Tenant {
        tenant: String, key_id: Text, version: Option<Count>, active_since: Text, age_days: Option<Count>,
        rotate_every: Text, is_overdue: bool, versions: Count, deactivated: Count, suspended: Count,
        compromised: Count, destroyed: Count,
    }
    Key {
        key_id: String, tenant: String, purpose: String, version: Count, state: String, created_at: Text,
        deactivated_at: Text, destroyed_at: Text, destroy_after: Text,
    }

    MasterKeys { supports: Vec<String>, source: Text, keys: List<MasterKey>, events: List<Event>, }
    MasterKey {
        fingerprint: String, is_current: bool, first_used_at: Text, retired_at: Text, age_days: Option<Count>,
        is_loaded: Option<bool>, wrapped_keys: Count,
    }
    Event {
        id: String, at: Text, event: String, actor: String, role: String, client_address: Text,
        tenant: Text, key_id: Text, error_code: Text, value_count: Option<Count>, reason: Text,
    }

    Rotation {
        supports: Vec<String>, rotated: Count, tenants: Count, failed: Count, last_at: Text, bucket: Text,
        over_time: Vec<Rotated>, log: List<RotationRun>,
    }
    Rotated { from: String, rotated: Count, failed: Count, }
    RotationRun {
        at: Text, tenant: String, outcome: String, old_key_id: Text, new_key_id: Text, actor: String,
        role: String, reason: Text, error_code: Text, error: Text,
    }

    Reencryption {
        supports: Vec<String>, problem: Text, totals: CoverageTotals, columns: List<Coverage>,
        runs: List<ReencryptionRun>, failures: Count,
    }
    CoverageTotals {
        columns: Count, columns_not_counted: Count, active: Option<Count>, deactivated: Option<Count>,
        suspended: Option<Count>, compromised: Option<Count>, destroyed: Option<Count>,
        unknown: Option<Count>, is_exact: bool,
    }
    Coverage {
        table: String, column: String, not_counted: Text, note: Text, is_exact: bool, active: Count,
        deactivated: Count, suspended: Count, compromised: Count, destroyed: Count, unknown: Count,
    }
    ReencryptionRun {
        table: String, state: String, rows_total: Count, rows_total_is_exact: bool, rows_done: Count,
        rows_moved: Count, rows_failed: Count, started_at: Text, finished_at: Text, error_code: Text, error: Text,
    }

    Destruction { supports: Vec<String>, destroyed: List<Key>, scheduled: List<Key>, events: List<Event>, }

    Access {
        supports: Vec<String>, owner: Text, roles: List<Role>, counts: Holders, superusers: Count,
        powerful: List<Powerful>, changes: List<Event>,
    }
    Role {
        role: String, can_login: bool, privileges: Vec<String>, granted: Vec<String>, through: Vec<String>,
        other_rights: Vec<String>, other_rights_total: Count,
    }
    Holders { encrypt: Count, decrypt: Count, reencrypt: Count, manage: Count, audit: Count, backup: Count, }
    Powerful { role: String, can_login: bool, why: Vec<String>, }

    Use {
        supports: Vec<String>, audit_decrypt: Text, decrypted: Count, decrypt_records: Count, failed: Count,
        refused: Count, bucket: Text, over_time: Vec<Used>, by_role: List<UseOfRole>,
        by_tenant: List<UseOfTenant>, by_code: List<Failures>, refusals: List<Event>,
    }
    Used { from: String, decrypted: Count, failed: Count, refused: Count, }
    UseOfRole {
        role: String, actor: String, tenants: Count, decrypted: Count, failed: Count, refused: Count,
        last_at: Text,
    }
    UseOfTenant { tenant: Text, roles: Count, decrypted: Count, failed: Count, refused: Count, last_at: Text, }
    Failures { event: String, error_code: Text, times: Count, last_at: Text, }

    Approvals {
        supports: Vec<String>, required_for: Vec<String>, counts: ApprovalCounts, open: List<Request>,
        events: List<Event>,
    }
    ApprovalCounts { requested: Count, given: Count, used: Count, withdrawn: Count, refused: Count, }
    Request {
        id: String, operation: String, subject: String, reason: String, requested_by: String,
        requested_at: Text, expires_at: Text, approved_by: Text,
    }

    Exports {
        supports: Vec<String>, last_export_at: Text, exports: Count, imports: Count,
        states_confirmed: Option<bool>, events: List<Event>,
    }

    AuditLog {
        supports: Vec<String>, rows: Count, rows_in_period: Count, first_at: Text, last_at: Text,
        sealed: Count, unsealed: Count, unauthenticated: Count, gaps: Option<Count>,
        events_in_gaps: Option<Count>, is_preloaded: Option<bool>, last_problem: Text,
        checkpoint: Option<Checkpoint>, checkpoints: Count, signers: Signers, forks: Count,
        origins: List<Origin>, retired_rows: Count, events: List<Event>,
    }
    Signers { total: Count, unclean: Count, first_public_key: Text, last_public_key: Text, }
    Origin {
        log_id: String, at: Text, cause: String, old_size: Count, acknowledged_at: Text,
        acknowledged_by: Text, acknowledged_reason: Text,
    }
    Checkpoint { at: Text, size: Count, root: Text, note: Text, is_final: Option<bool>, }

    Verification {
        supports: Vec<String>, status: Text, summary: Text, from: Text, to: Text,
        seconds: Option<serde_json::Number>, findings: List<Finding>,
        stored: List<Verified>,
    }
    Verified { at: Text, status: String, findings: Count, actor: String, detail: Text, }
    Finding { status: String, finding: String, leaf: Option<Count>, log_id: Text, detail: Text, }

    Health {
        supports: Vec<String>, status: Text, problem: Text, ok: Count, warning: Count, critical: Count,
        checks: Vec<Check>,
    }
    Check { check: String, status: String, detail: Text, hint: Text, }
}
