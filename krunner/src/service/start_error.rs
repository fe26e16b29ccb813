//! Why a service is not started. The texts are the error in the agent's reply.

use std::io;
use std::time::Duration;

use super::action::ActionError;
use super::launch::LaunchError;
use super::model::ModelError;
use crate::supervisor::{PortTaken, ProgramStartError};

/// Why a request to start a service is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// A protocol that no agent uses.
    #[error("not implemented yet")]
    PseudoTerminal,
    /// No definition has this name.
    #[error("unsupported service")]
    Unsupported,
    /// The definition of this name is invalid.
    #[error("unsupported service: {0}")]
    BrokenDefinition(String),
    /// The user's arguments or variables are not allowed.
    #[error(transparent)]
    Options(#[from] LaunchError),
    /// The definition of a model service is invalid.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// There is no port to listen on.
    #[error("the request has no `ports`")]
    NoPorts,
    /// A service cannot listen on any port that is free.
    #[error("port 0 is not valid")]
    PortZero,
    /// Too many run already.
    #[error("too many services are running (limit {0})")]
    TooMany(usize),
}

/// Why a service that was requested does not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrepareError {
    /// The definition's templates are invalid, or their variables are missing.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The model's directory does not exist.
    #[error("model directory does not exist: {0}")]
    NoDirectory(String),
    /// This user may not enter the model's directory.
    #[error("cannot enter the model directory {directory}: {error}")]
    ClosedDirectory {
        /// The directory that the agent named.
        directory: String,
        /// Not a source: it is part of the text.
        error: io::Error,
    },
    /// Another program has the port.
    #[error(transparent)]
    Port(#[from] PortTaken),
    /// The program did not start.
    #[error(transparent)]
    Program(#[from] ProgramStartError),
    /// It was stopped while its actions ran.
    #[error("stopped before it started")]
    Stopped,
    /// The actions did not end in time.
    #[error("its actions were stopped: they took longer than {0:?}")]
    SlowActions(Duration),
    /// An action failed.
    #[error("the action `{name}` failed")]
    Action {
        /// The kind of the action.
        name: &'static str,
        /// The error of that action.
        #[source]
        source: ActionError,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_stable_texts() {
        let errors = [
            RequestError::PseudoTerminal,
            RequestError::Unsupported,
            RequestError::BrokenDefinition("/x.json: no `command`".to_owned()),
            RequestError::NoPorts,
            RequestError::PortZero,
            RequestError::TooMany(64),
        ];
        insta::assert_snapshot!(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"), @r"
        not implemented yet
        unsupported service
        unsupported service: /x.json: no `command`
        the request has no `ports`
        port 0 is not valid
        too many services are running (limit 64)
        ");
        let errors = [
            PrepareError::NoDirectory("/m".to_owned()),
            PrepareError::ClosedDirectory { directory: "/m".to_owned(), error: io::ErrorKind::PermissionDenied.into() },
            PrepareError::Stopped,
            PrepareError::SlowActions(Duration::from_mins(10)),
        ];
        insta::assert_snapshot!(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"), @r"
        model directory does not exist: /m
        cannot enter the model directory /m: permission denied
        stopped before it started
        its actions were stopped: they took longer than 600s
        ");
    }
}
