//! What a tenant may be called.
//!
//! A name is compared byte for byte and gets a key of its own on first use, so a name that only looks like another
//! one would hide values: they are under a key that nobody looks for, rotates or shreds. Names that keys had before
//! stay theirs; this is for new ones.

/// The name of the keys that authenticate the audit log, which are no tenant's.
pub const AUDIT_LOG: &str = "audit log";
/// The name of the keys of loose values, which are the database's.
pub const LOOSE_VALUES: &str = "loose values";

/// Why a name is none of a tenant's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TenantNameProblem {
    /// There is none.
    Empty,
    /// It is too long to be stored.
    Length,
    /// It begins or ends with what can't be seen.
    Edge,
    /// It has characters that control a terminal, break a line or turn the direction of writing.
    Control,
    /// It is [`AUDIT_LOG`] or [`LOOSE_VALUES`].
    Reserved,
}

/// Says what is wrong with the name of a new tenant, but for its length, which depends on where it is stored.
pub fn check(name: &str) -> Result<(), TenantNameProblem> {
    if name.is_empty() {
        return Err(TenantNameProblem::Empty);
    }
    if name.chars().any(is_control) {
        return Err(TenantNameProblem::Control);
    }
    if name.starts_with(is_unseen) || name.ends_with(is_unseen) {
        return Err(TenantNameProblem::Edge);
    }
    if matches!(name, AUDIT_LOG | LOOSE_VALUES) {
        return Err(TenantNameProblem::Reserved);
    }
    Ok(())
}

/// The same of a name whose encoding is not known: of its ASCII characters, which are the same in all encodings of
/// databases.
pub fn check_ascii(name: &[u8]) -> Result<(), TenantNameProblem> {
    let seen: String =
        name.iter().map(|byte| if byte.is_ascii() { char::from(*byte) } else { '?' }).collect();
    check(&seen)
}

/// General category Cc; separators of lines and paragraphs; what embeds, overrides or isolates a direction.
fn is_control(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{2028}' | '\u{2029}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// White space, and what Unicode calls `Default_Ignorable_Code_Point`, without the selectors of variations, which
/// emoji end with; blanks that count as letters or symbols; the marks of annotations.
fn is_unseen(character: char) -> bool {
    character.is_whitespace()
        || matches!(
            character,
            '\u{00AD}'
                | '\u{034F}'
                | '\u{061C}'
                | '\u{115F}'..='\u{1160}'
                | '\u{17B4}'..='\u{17B5}'
                | '\u{180E}'
                | '\u{200B}'..='\u{200F}'
                | '\u{2060}'..='\u{206F}'
                | '\u{2800}'
                | '\u{3164}'
                | '\u{FEFF}'
                | '\u{FFA0}'
                | '\u{FFF0}'..='\u{FFFB}'
                | '\u{1BCA0}'..='\u{1BCA3}'
                | '\u{1D173}'..='\u{1D17A}'
                | '\u{E0000}'..='\u{E00FF}'
                | '\u{E01F0}'..='\u{E0FFF}'
        )
}
