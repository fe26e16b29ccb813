//! How a child ended.

use nix::sys::wait::WaitStatus;

/// The end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It called `exit` with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

impl Exit {
    /// From what `waitpid` returned; `None` for stops and continues, which are no end.
    pub(super) fn from_status(status: WaitStatus) -> Option<Self> {
        match status {
            WaitStatus::Exited(_, code) => Some(Self::Code(code)),
            WaitStatus::Signaled(_, signal, _) => Some(Self::Signal(signal as i32)),
            _ => None,
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
    }
}
