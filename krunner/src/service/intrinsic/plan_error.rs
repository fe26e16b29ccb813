//! Errors of planning the services.

use super::keys::KeysError;
use super::missing_program::MissingProgram;

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
