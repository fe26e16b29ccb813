//! Explains exits that the exit code alone does not explain.
//!
//! SIGKILL may come from the OOM killer, from a process in the container, or from outside; SIGBUS may come from a full
//! tmpfs. The code that finds out is above this module, so it is a trait here.

use std::time::Duration;

use async_trait::async_trait;
use nix::libc::{SIGBUS, SIGKILL};
use nix::unistd::Pid;

use super::outcome::ChildStatus;

/// A shell reports a child killed by a signal as its own exit code: this base plus the signal number (POSIX, 2.8.2).
const SHELL_SIGNAL_BASE: i32 = 128;

/// An exit that needs an explanation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnexplainedExit {
    /// The program was killed by SIGKILL.
    Sigkill,
    /// It exited with 137: its own child was killed by SIGKILL, or it chose that code.
    ShellSigkill,
    /// It was killed by SIGBUS, or exited with the shell's code for that.
    Sigbus,
}

impl UnexplainedExit {
    /// `None` if the exit needs no explanation.
    #[must_use]
    pub(crate) fn of(exit: ChildStatus) -> Option<Self> {
        const SHELL_SIGKILL: i32 = SHELL_SIGNAL_BASE + SIGKILL;
        const SHELL_SIGBUS: i32 = SHELL_SIGNAL_BASE + SIGBUS;
        match exit {
            ChildStatus::Signal(SIGKILL) => Some(Self::Sigkill),
            ChildStatus::Code(SHELL_SIGKILL) => Some(Self::ShellSigkill),
            ChildStatus::Signal(SIGBUS) | ChildStatus::Code(SHELL_SIGBUS) => Some(Self::Sigbus),
            ChildStatus::Code(_) | ChildStatus::Signal(_) => None,
        }
    }
}

/// The reason for an exit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExitReason {
    /// A phrase without a period, e.g. `OOM kill of 37 (python3, rss 258m)`.
    pub text: String,
    /// Whether a report to the user covers it already.
    pub is_reported: bool,
}

/// Finds the reason for an exit.
#[async_trait]
pub(crate) trait ExitExplainer: Send + Sync {
    /// Explains the exit of `pid`, a child of ours that ran for `ran_for`. Returns within seconds.
    async fn explain(&self, pid: Pid, end: UnexplainedExit, ran_for: Duration) -> Option<ExitReason>;
}

/// An [`ExitExplainer`] without any explanation.
pub(crate) struct NoExplanation;

#[async_trait]
impl ExitExplainer for NoExplanation {
    async fn explain(&self, _: Pid, _: UnexplainedExit, _: Duration) -> Option<ExitReason> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kills_and_bus_errors_are_puzzling() {
        let ends = [ChildStatus::Signal(9), ChildStatus::Code(137), ChildStatus::Signal(7), ChildStatus::Code(135)]
            .map(UnexplainedExit::of);
        let (kill, shell, bus) =
            (Some(UnexplainedExit::Sigkill), Some(UnexplainedExit::ShellSigkill), Some(UnexplainedExit::Sigbus));
        assert_eq!(ends, [kill, shell, bus, bus]);
        assert_eq!(
            [ChildStatus::Code(0), ChildStatus::Code(1), ChildStatus::Signal(15), ChildStatus::Signal(2)]
                .map(UnexplainedExit::of),
            [None; 4]
        );
    }
}
