//! Two tiers of failure.
//!
//! A [`Critical`] failure ends the process with an exit code of its own. Everything else is a
//! runtime failure: it belongs to one step, one connection or one file, is told to the agent or the
//! log where it happens, and the session goes on; those types live beside the code that fails.

use std::io;

use crate::exit::Exit;

/// What the runner cannot go on after.
#[derive(Debug, thiserror::Error)]
pub enum Critical {
    /// One of the two sockets of the protocol could not be bound.
    #[error("cannot bind port {port} ({name} of intrinsic-ports.json)")]
    Bind {
        /// `replin` or `replout`.
        name: &'static str,
        /// The TCP port.
        port: u16,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// Signal handlers or another part of the process itself could not be set up.
    #[error("cannot set up {what}")]
    Setup {
        /// Which part.
        what: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A bug: one of our own tasks panicked.
    #[error("the task `{0}` panicked")]
    TaskPanicked(&'static str),
}

impl Critical {
    /// The exit code that goes with it.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Bind { .. } => Exit::Port,
            Self::Setup { .. } => Exit::Failure,
            Self::TaskPanicked(_) => Exit::Internal,
        }
    }
}

/// An error and its causes in one line: `cannot bind port 2000: Address already in use`.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
