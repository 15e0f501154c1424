//! The sealed audit log of pg_fieldcrypt: everything of it that can exist without Postgres.
//!
//! A row of the log is a [`LogRow`], encoded in one way only. It is authenticated under an
//! [`AuditKey`] and becomes a leaf ([`leaf_hash`]) of a Merkle tree ([`tree`], RFC 6962), whose size
//! and root a [`Checkpoint`] (C2SP tlog-checkpoint) states, signed as a [`Note`] (C2SP signed-note) by
//! a key that is introduced by a [`SignerStatement`]. `docs/audit-format.md` says all of it in words.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod checkpoint;
pub mod export;
mod form;
mod inclusion;
pub mod note;
mod primitives;
pub mod proof;
pub mod row;
pub mod signer;
pub mod time;
pub mod tree;
pub mod verify;

pub use checkpoint::{Checkpoint, LogId};
pub use fieldcrypt_envelope::{AuditKey, RandomnessUnavailable};
pub use inclusion::{InclusionProof, NotProven};
pub use note::{KeyError, Malformed, NotSigned, Note, SigningKey, VerifyingKey, sign_note};
pub use proof::{
    ProofBuilder, consistency_proof, inclusion_proof, verify_consistency, verify_inclusion,
};
pub use row::{HalfAMac, LogRow, leaf_hash};
pub use signer::{Introduction, Place, SignerStatement};
pub use tree::{CompactRange, Frontier, Hash, NotAFrontier, NotAdjacent};
