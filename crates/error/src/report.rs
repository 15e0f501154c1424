//! What a user reads about an error.

/// What a user reads about an error: never a key, never a plaintext. Plain data; texts are in UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Five characters, see `docs/errors.md`.
    pub sqlstate: SqlState,
    /// One sentence, lower case, no full stop.
    pub message: String,
    /// What Postgres itself had to add.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
    /// Whether it is raised without CONTEXT, QUERY and position. A literal that is refused while a
    /// statement is parsed has a position, and inside PL/pgSQL that makes Postgres log the statement as
    /// QUERY.
    pub is_without_context: bool,
}

/// The five characters of an SQLSTATE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SqlState(pub [u8; 5]);

impl SqlState {
    /// As text. What is no ASCII, which no SQLSTATE has, is empty.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Report {
    /// With a hint, or '' for none.
    pub fn new(sqlstate: &[u8; 5], message: String, hint: &str) -> Self {
        Self {
            sqlstate: SqlState(*sqlstate),
            message,
            detail: None,
            hint: (!hint.is_empty()).then(|| hint.to_owned()),
            is_without_context: false,
        }
    }

    /// The same, without CONTEXT.
    pub fn without_context(self) -> Self {
        Self { is_without_context: true, ..self }
    }
}
