//! The core of pg_fieldcrypt: everything that can exist without Postgres.
//!
//! Keys, from the outside in ([`keys`]): a [`MasterKey`] wraps [`DataKey`]s; a data key yields one
//! [`SuiteKey`] per suite; a suite key yields a [`MessageKey`] per nonce prefix; a message key seals
//! and opens fields in the format of [`ciphertext`], with nonces dealt by a [`NonceBlock`].
//!
//! A value of suite 0x01 is bound to a context that who opens it knows; one of suite 0x02 or 0x03 ([`bound`]) carries a
//! hash of its place ([`binding`]) and the form of its plaintext ([`forms`]), and the latter a tag by which it is found
//! ([`search`]).
//!
//! Data written by the extension opens with this crate alone, or with any XAES-256-GCM
//! implementation: `docs/format.md` says how.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod any_suite;
mod ascii;
pub mod binding;
pub mod bound;
pub mod calendar;
pub mod ciphertext;
pub mod context;
mod folding;
pub mod forms;
pub mod key_export;
pub mod keys;
pub mod master_key_text;
pub mod nonce;
mod place;
mod primitives;
pub mod search;
pub mod tenant_name;

pub use any_suite::{AnyCiphertext, from_any_text, parse_any_text};
pub use ascii::to_ascii;
pub use binding::{Expected, Place, Session, Stamp};
pub use bound::{Binding, BoundCiphertext, Header};
pub use ciphertext::{Ciphertext, Malformed};
pub use context::Context;
pub use forms::Form;
pub use keys::{
    AuditKey, BoundKey, BoundMessageKey, DataKey, Fingerprint, KeyId, KeyMetadata, KeyState, Kind,
    MasterKey, MessageKey, NotAuthentic, Purpose, RewrapError, SuiteKey, TagKey, UnwrapError,
    WrongKey,
};
pub use nonce::{BlockScope, Entropy, Nonce, NonceBlock, SystemEntropy};
pub use place::{MAX_CONTEXT_BYTES, MAX_SHORT_BYTES, Part, place, place_into};
pub use primitives::{RandomnessUnavailable, random, sha256};
pub use search::{Domain, SearchTag};
