//! Warnings about invalid configuration.

use std::fmt;
use std::path::{Path, PathBuf};

/// A problem in a configuration file or variable and its consequence; logged once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigWarning {
    file: PathBuf,
    line: Option<usize>,
    problem: String,
}

impl ConfigWarning {
    pub(super) fn new(file: &Path, line: Option<usize>, problem: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, problem: problem.into() }
    }
}

impl fmt::Display for ConfigWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.problem)
    }
}
