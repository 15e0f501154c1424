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
    Section {
        figure: "cryptography",
        title: "Cryptography",
        supports: |r| &r.cryptography.supports,
        write: keys::cryptography,
    },
    Section {
        figure: "keys",
        title: "Encryption keys",
        supports: |r| &r.keys.supports,
        write: keys::inventory,
    },
    Section {
        figure: "master_keys",
        title: "Master keys",
        supports: |r| &r.master_keys.supports,
        write: keys::master_keys,
    },
    Section {
        figure: "rotation",
        title: "Rotation",
        supports: |r| &r.rotation.supports,
        write: keys::rotation,
    },
    Section {
        figure: "reencryption",
        title: "Re-encryption coverage",
        supports: |r| &r.reencryption.supports,
        write: keys::reencryption,
    },
    Section {
        figure: "destruction",
        title: "Destruction of keys",
        supports: |r| &r.destruction.supports,
        write: keys::destruction,
    },
    Section {
        figure: "access",
        title: "Access by role",
        supports: |r| &r.access.supports,
        write: audit::access,
    },
    Section {
        figure: "use",
        title: "Use of keys, failures and refusals",
        supports: |r| &r.r#use.supports,
        write: audit::used,
    },
    Section {
        figure: "approvals",
        title: "Approvals by two people",
        supports: |r| &r.approvals.supports,
        write: audit::approvals,
    },
    Section {
        figure: "exports",
        title: "Exports and imports of keys",
        supports: |r| &r.exports.supports,
        write: audit::exports,
    },
    Section {
        figure: "audit_log",
        title: "Audit log",
        supports: |r| &r.audit_log.supports,
        write: audit::log,
    },
    Section {
        figure: "verification",
        title: "Verification of the audit log",
        supports: |r| &r.verification.supports,
        write: audit::verification,
    },
    Section {
        figure: "health",
        title: "Health checks",
        supports: |r| &r.health.supports,
        write: audit::health,
    },
];
