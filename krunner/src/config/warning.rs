//! A configuration file that could not be used as it is.

use std::fmt;
use std::path::{Path, PathBuf};

/// What was wrong, where, and what happens instead; shown once in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    file: PathBuf,
    line: Option<usize>,
    problem: String,
}

impl Warning {
    pub(super) fn new(file: &Path, line: Option<usize>, problem: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, problem: problem.into() }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.problem)
    }
}
