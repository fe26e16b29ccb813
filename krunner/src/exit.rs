//! The exit codes of the krunner process, in one place; `krunner --help` lists them.

use std::process::ExitCode;

/// How the process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done, or stopped by SIGINT or SIGTERM.
    Ok = 0,
    /// Something failed that no other code names; the last line on stderr says what.
    Failure = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// A port of the agent's protocol is taken or not ours to bind.
    Port = 3,
    /// `krunner send` got no answer in time.
    NoAnswer = 4,
    /// A bug in krunner: a task panicked.
    Internal = 70,
    /// A second signal cut the shutdown short.
    Forced = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
