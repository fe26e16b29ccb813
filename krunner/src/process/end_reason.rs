//! Why a program ended as it did, where its exit code does not say.
//!
//! SIGKILL may come from the OOM killer, from a process inside, or from outside the container; SIGBUS from a full tmpfs. Who knows is
//! above this module, so it is a trait here.

use std::time::Duration;

use async_trait::async_trait;
use nix::libc::{SIGBUS, SIGKILL};
use nix::unistd::Pid;

use super::outcome::Exit;

/// A shell reports a child that a signal killed as its own exit code, so many above the signal's number (POSIX, 2.8.2).
const SHELL_SIGNAL_BASE: i32 = 128;

/// Ends whose reason is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PuzzlingEnd {
    /// The program itself died of SIGKILL.
    Sigkill,
    /// It exited with 137: one that it started died of SIGKILL, or it just said so.
    ShellSigkill,
    /// It died of SIGBUS, or exited with the code for that.
    Sigbus,
}

impl PuzzlingEnd {
    /// `None` when the exit speaks for itself.
    #[must_use]
    pub fn of(exit: Exit) -> Option<Self> {
        const SHELL_SIGKILL: i32 = SHELL_SIGNAL_BASE + SIGKILL;
        const SHELL_SIGBUS: i32 = SHELL_SIGNAL_BASE + SIGBUS;
        match exit {
            Exit::Signal(SIGKILL) => Some(Self::Sigkill),
            Exit::Code(SHELL_SIGKILL) => Some(Self::ShellSigkill),
            Exit::Signal(SIGBUS) | Exit::Code(SHELL_SIGBUS) => Some(Self::Sigbus),
            Exit::Code(_) | Exit::Signal(_) => None,
        }
    }
}

/// Why a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndReason {
    /// In words, without a period: `OOM kill of 37 (python3, rss 258m)`.
    pub text: String,
    /// The user has a report of it already.
    pub is_reported: bool,
}

/// Knows why programs ended.
#[async_trait]
pub trait ExplainEnd: Send + Sync {
    /// Why this program, a child of ours that ran for so long, came to that end. Answers within seconds.
    async fn explain(&self, pid: Pid, end: PuzzlingEnd, ran_for: Duration) -> Option<EndReason>;
}

/// Knows nothing.
pub struct Unexplained;

#[async_trait]
impl ExplainEnd for Unexplained {
    async fn explain(&self, _: Pid, _: PuzzlingEnd, _: Duration) -> Option<EndReason> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kills_and_bus_errors_are_puzzling() {
        let ends = [Exit::Signal(9), Exit::Code(137), Exit::Signal(7), Exit::Code(135)].map(PuzzlingEnd::of);
        let (kill, shell, bus) =
            (Some(PuzzlingEnd::Sigkill), Some(PuzzlingEnd::ShellSigkill), Some(PuzzlingEnd::Sigbus));
        assert_eq!(ends, [kill, shell, bus, bus]);
        assert_eq!([Exit::Code(0), Exit::Code(1), Exit::Signal(15), Exit::Signal(2)].map(PuzzlingEnd::of), [None; 4]);
    }
}
