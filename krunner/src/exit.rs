//! The exit codes of the krunner process, in one place; `krunner --help` and the manual page list them from here.

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

impl Exit {
    /// In the order of their numbers.
    pub const ALL: [Self; 7] =
        [Self::Ok, Self::Failure, Self::Usage, Self::Port, Self::NoAnswer, Self::Internal, Self::Forced];

    /// For people, in few words.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "done, or stopped by SIGINT or SIGTERM",
            Self::Failure => "failed; the last line on stderr says why",
            Self::Usage => "wrong usage",
            Self::Port => "a port is taken",
            Self::NoAnswer => "send: no answer in time",
            Self::Internal => "a bug: an internal task panicked",
            Self::Forced => "a second signal cut the shutdown short",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
