//! Signed notes as texts of a database. Their signature lines begin with a dash (U+2014) that not every
//! encoding has: there it is written `\u2014`. A note has no other backslash.

use crate::pg::encoding;

const DASH: &str = "\u{2014}";
const ESCAPED: &str = "\\u2014";

/// A note as a text in the database's encoding.
pub fn to_database(note: &str) -> Vec<u8> {
    match encoding::from_utf8(note.as_bytes()) {
        Ok(text) => text.into_owned(),
        Err(_) => note.replace(DASH, ESCAPED).into_bytes(),
    }
}

/// A note, from a text in the database's encoding.
pub fn from_database(text: &[u8]) -> String {
    encoding::lossy(text).replace(ESCAPED, DASH)
}
