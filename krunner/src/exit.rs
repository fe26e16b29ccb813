//! The exit codes of the krunner process, in one place; `krunner --help` and the manual page list them.

use std::process::ExitCode;

/// Variants with their numbers, and what each means once: for rustdoc and for users.
macro_rules! exits {
    ($($name:ident = $code:literal, $meaning:literal;)+) => {
        /// How the process ended.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Exit {
            $(#[doc = $meaning] $name = $code,)+
        }

        impl Exit {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// In words, for users.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => $meaning,)+
                }
            }
        }
    };
}

exits! {
    Ok = 0, "done, or stopped by SIGINT or SIGTERM";
    Failure = 1, "failed; the last line on stderr says why";
    Usage = 2, "the command line makes no sense";
    Port = 3, "a port of the agent's protocol is taken, or may not be bound";
    NoAnswer = 4, "send: no answer in time";
    Internal = 70, "a bug in krunner: an internal task panicked";
    Forced = 130, "a second signal cut the shutdown short";
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
