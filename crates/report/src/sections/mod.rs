//! The sections of the page, in its order.

mod audit;
mod keys;

use crate::html::Html;
use crate::record::Report;

pub use audit::ran;
pub use keys::who;

/// A section: what the document calls it, its heading, and what writes it.
pub struct Section {
    pub figure: &'static str,
    pub title: &'static str,
    pub supports: fn(&Report) -> &[String],
    pub write: fn(&mut Html, &Report),
}

/// All of them.
pub const SECTIONS: [Section; 13] = [
    section("cryptography", "Cryptography", |r| &r.cryptography.supports, keys::cryptography),
    section("keys", "Encryption keys", |r| &r.keys.supports, keys::inventory),
    section("master_keys", "Master keys", |r| &r.master_keys.supports, keys::master_keys),
    section("rotation", "Rotation", |r| &r.rotation.supports, keys::rotation),
    section(
        "reencryption",
        "Re-encryption coverage",
        |r| &r.reencryption.supports,
        keys::reencryption,
    ),
    section("destruction", "Destruction of keys", |r| &r.destruction.supports, keys::destruction),
    section("access", "Access by role", |r| &r.access.supports, audit::access),
    section("use", "Use of keys, failures and refusals", |r| &r.r#use.supports, audit::used),
    section("approvals", "Approvals by two people", |r| &r.approvals.supports, audit::approvals),
    section("exports", "Exports and imports of keys", |r| &r.exports.supports, audit::exports),
    section("audit_log", "Audit log", |r| &r.audit_log.supports, audit::log),
    section(
        "verification",
        "Verification of the audit log",
        |r| &r.verification.supports,
        audit::verification,
    ),
    section("health", "Health checks", |r| &r.health.supports, audit::health),
];

const fn section(
    figure: &'static str,
    title: &'static str,
    supports: fn(&Report) -> &[String],
    write: fn(&mut Html, &Report),
) -> Section {
    Section { figure, title, supports, write }
}
