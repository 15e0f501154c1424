//! Why something could not be tried at all. Never holds a key or a plaintext.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// A failure of the program, as it is shown.
#[derive(Debug)]
pub enum Failure {
    /// A file that can't be read or written.
    File { path: PathBuf, error: io::Error },
    /// The output.
    Output(io::Error),
    /// Anything else, in a sentence.
    Other(String),
}

impl Failure {
    pub fn file(path: &Path, error: io::Error) -> Self {
        Self::File { path: path.to_owned(), error }
    }

    pub fn usage(problem: impl Into<String>) -> Self {
        Self::Other(problem.into())
    }

    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, error } => write!(f, "{}: {error}", path.display()),
            Self::Output(error) => write!(f, "can't write: {error}"),
            Self::Other(problem) => f.write_str(problem),
        }
    }
}
