//! A server whose program is not mounted.

use std::path::PathBuf;

/// Neither of the programs that would do is mounted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("neither {} nor {} exists", preferred.display(), other.display())]
pub(crate) struct MissingProgram {
    /// The program of newer agents.
    pub(super) preferred: PathBuf,
    /// The program of older agents.
    pub(super) other: PathBuf,
}
