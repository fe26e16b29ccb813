//! How a child ended.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

/// The end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It called `exit` with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

impl Exit {
    pub(super) fn from_status(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, signal) => Self::Signal(signal.unwrap_or(nix::libc::SIGKILL)),
        }
    }

    /// The exit code as the agent reads it: the child's own, or `-N` for signal N.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => -signal,
        }
    }
}

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It ran to its own end.
    Ended(Exit),
    /// The runner stops and has ended it.
    CutShort(Exit),
    /// It was interrupted before it started.
    NotStarted,
}

impl Outcome {
    /// The exit code for the agent. What was cut short never counts as a success, whatever it said.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::CutShort(Exit::Code(0)) => -nix::libc::SIGTERM,
            Self::CutShort(exit) | Self::Ended(exit) => exit.code(),
            Self::NotStarted => -nix::libc::SIGINT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_follow_the_contract() {
        assert_eq!(Outcome::Ended(Exit::Code(3)).code(), 3);
        assert_eq!(Outcome::Ended(Exit::Signal(9)).code(), -9);
        assert_eq!(Outcome::CutShort(Exit::Code(0)).code(), -15);
        assert_eq!(Outcome::CutShort(Exit::Code(7)).code(), 7);
        assert_eq!(Outcome::NotStarted.code(), -2);
        let real_time = Exit::from_status(ExitStatus::from_raw(40));
        assert_eq!(real_time, Exit::Signal(40));
    }
}
