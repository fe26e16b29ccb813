//! The exit codes of the krunner process, in one place; `krunner --help` and the manual page list them.

use std::process::ExitCode;

/// Defines each exit code once: its number, and its meaning for rustdoc and for users.
macro_rules! exits {
    ($($name:ident = $code:literal, $meaning:literal;)+) => {
        /// The exit code of the runner process.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Exit {
            $(#[doc = $meaning] $name = $code,)+
        }

        impl Exit {
            /// All exit codes in numeric order.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The meaning shown to users.
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
    Ok = 0, "success, or stopped by SIGINT or SIGTERM";
    Failure = 1, "failure; see the last line on stderr";
    Usage = 2, "invalid command line";
    Port = 3, "cannot bind a port of the agent protocol";
    NoAnswer = 4, "send: no reply within the timeout, or the runner exited";
    Internal = 70, "internal error: a krunner task panicked";
    Forced = 130, "shutdown forced by a second signal";
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
