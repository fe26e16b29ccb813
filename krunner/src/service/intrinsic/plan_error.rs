//! Errors of planning the services.

use std::path::PathBuf;

use super::keys::KeysError;

/// Neither of the programs that would do is mounted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("neither {} nor {} exists", preferred.display(), other.display())]
pub(crate) struct MissingProgram {
    /// The program of newer agents.
    pub(super) preferred: PathBuf,
    /// The program of older agents.
    pub(super) other: PathBuf,
}

/// Why a service cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    /// Its program is missing.
    #[error(transparent)]
    Missing(#[from] MissingProgram),
    /// The ssh server has no host key.
    #[error(transparent)]
    Keys(#[from] KeysError),
}
