//! The core of pg_fieldcrypt: everything that can exist without Postgres.
//!
//! Keys, from the outside in ([`keys`]): a [`MasterKey`] wraps [`DataKey`]s; a data key yields one
//! [`SuiteKey`] per suite; a suite key yields a [`MessageKey`] per nonce prefix; a message key seals
//! and opens fields in the format of [`ciphertext`], with nonces dealt by a [`NonceBlock`].
//!
//! Data written by the extension opens with this crate alone, or with any XAES-256-GCM
//! implementation: `docs/format.md` says how.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod ascii;
pub mod calendar;
pub mod ciphertext;
pub mod context;
pub mod key_export;
pub mod keys;
pub mod master_key_text;
pub mod nonce;
mod place;
mod primitives;
pub mod tenant_name;

pub use ascii::to_ascii;
pub use ciphertext::{Ciphertext, Malformed};
pub use context::Context;
pub use keys::{
    AuditKey, DataKey, Fingerprint, KeyId, KeyMetadata, KeyState, MasterKey, MessageKey,
    NotAuthentic, RewrapError, SuiteKey, UnwrapError,
};
pub use nonce::{BlockScope, Entropy, Nonce, NonceBlock, SystemEntropy};
pub use place::{MAX_CONTEXT_BYTES, MAX_SHORT_BYTES, Part, place};
pub use primitives::{RandomnessUnavailable, random, sha256};
