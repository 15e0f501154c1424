//! SQL as it stands in a server log: what of it is a literal, which names it mentions, and the same
//! text without its literals.
//!
//! Bytes in any encoding that a PostgreSQL server may have, all of which keep ASCII to itself. Nothing
//! here fails on broken SQL, calls Postgres, panics, or ends the process when memory is short.

#![forbid(unsafe_code)]

mod lexer;
mod libraries;
mod mask;
pub mod messages;
mod names;
mod plan;
mod text;

pub use lexer::{Kind, Token, Tokens};
pub use libraries::{mask_audit, mask_job};
pub use mask::{MASK, mask};
pub use names::{Names, Place, executes};
pub use plan::mask_plan;
pub use text::{OutOfMemory, Text};
