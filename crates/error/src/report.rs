//! What a user reads about an error.

/// What a user reads about an error: never a key, never a plaintext. Plain data; texts are in UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Five characters, see `docs/errors.md`.
    pub sqlstate: SqlState,
    /// One sentence, lower case, no full stop.
    pub message: String,
    /// What there is to add.
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

    /// Whether it is one of the extension's own.
    fn is_own(self) -> bool {
        self.0.starts_with(b"KF")
    }
}

impl Report {
    /// With a hint, or '' for none. Who sees no SQLSTATE, as in psql, sees a code of the extension's own in the hint.
    pub fn new(sqlstate: &[u8; 5], message: String, hint: &str) -> Self {
        let sqlstate = SqlState(*sqlstate);
        let hint = match (sqlstate.is_own(), hint) {
            (true, "") => format!("See {} in docs/errors.md.", sqlstate.as_str()),
            (true, hint) => format!("{hint} ({}, see docs/errors.md)", sqlstate.as_str()),
            (false, hint) => hint.to_owned(),
        };
        Self {
            sqlstate,
            message,
            detail: None,
            hint: (!hint.is_empty()).then_some(hint),
            is_without_context: false,
        }
    }

    /// The same, with a sentence more.
    pub fn with_detail(self, detail: String) -> Self {
        Self { detail: Some(detail), ..self }
    }

    /// The same, without CONTEXT.
    pub fn without_context(self) -> Self {
        Self { is_without_context: true, ..self }
    }
}
