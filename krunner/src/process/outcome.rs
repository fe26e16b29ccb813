//! How child processes exit.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

/// The exit of a child process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChildStatus {
    /// It called `exit` with this code.
    Code(i32),
    /// It was killed by this signal.
    Signal(i32),
}

impl ChildStatus {
    pub(super) fn from_status(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, signal) => Self::Signal(signal.unwrap_or(nix::libc::SIGKILL)),
        }
    }

    /// The exit code for the agent: the child's own, or `-N` for signal N.
    #[must_use]
    pub(crate) fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => -signal,
        }
    }
}

/// The outcome of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CommandOutcome {
    /// It exited by itself.
    Exited(ChildStatus),
    /// The runner terminated it.
    Terminated(ChildStatus),
    /// It was interrupted or terminated before it started.
    NotStarted,
}

impl CommandOutcome {
    /// The exit code for the agent. A terminated command never counts as a success.
    #[must_use]
    pub(crate) fn code(self) -> i32 {
        match self {
            Self::Terminated(ChildStatus::Code(0)) => -nix::libc::SIGTERM,
            Self::Terminated(exit) | Self::Exited(exit) => exit.code(),
            Self::NotStarted => -nix::libc::SIGINT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_follow_the_contract() {
        assert_eq!(CommandOutcome::Exited(ChildStatus::Code(3)).code(), 3);
        assert_eq!(CommandOutcome::Exited(ChildStatus::Signal(9)).code(), -9);
        assert_eq!(CommandOutcome::Terminated(ChildStatus::Code(0)).code(), -15);
        assert_eq!(CommandOutcome::Terminated(ChildStatus::Code(7)).code(), 7);
        assert_eq!(CommandOutcome::NotStarted.code(), -2);
        let real_time = ChildStatus::from_status(ExitStatus::from_raw(40));
        assert_eq!(real_time, ChildStatus::Signal(40));
    }
}
