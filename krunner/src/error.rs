//! Fatal errors, and formatting of error chains.
//!
//! A [`FatalError`] ends the process with its own exit code. All other errors concern one step, one connection or one
//! file: they are reported to the agent or logged where they occur, and the session continues. Their types live next to
//! the code that fails.

use std::io;

use crate::exit::Exit;

/// Errors the runner cannot recover from.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FatalError {
    /// One of the two sockets of the protocol could not be bound.
    #[error("cannot bind port {port} ({name} of intrinsic-ports.json)")]
    Bind {
        /// `replin` or `replout`.
        name: &'static str,
        /// The TCP port.
        port: u16,
        /// The OS error behind it.
        #[source]
        source: io::Error,
    },
    /// Signal handlers or another part of the process itself could not be set up.
    #[error("cannot set up {what}")]
    Setup {
        /// What was being set up, for the message.
        what: &'static str,
        /// The OS error behind it.
        #[source]
        source: io::Error,
    },
    /// A bug: an internal task panicked.
    #[error("task `{0}` panicked")]
    TaskPanicked(&'static str),
}

impl FatalError {
    /// The exit code of the process for this error.
    #[must_use]
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Bind { .. } => Exit::Port,
            Self::Setup { .. } => Exit::Failure,
            Self::TaskPanicked(_) => Exit::Internal,
        }
    }
}

/// An error and its causes in one line: `cannot bind port 2000: Address already in use`.
#[must_use]
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
