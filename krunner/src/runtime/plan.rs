//! What a step comes to.

use std::ffi::OsString;
use std::path::Path;

use crate::process::Command;

/// How loudly a plan without commands is explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// As it should be.
    Info,
    /// Odd, but no failure.
    Warning,
    /// The step fails.
    Error,
}

/// The commands of a step, or why there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Run these one after the other; the first that fails ends the step with its exit code.
    Run(Vec<Command>),
    /// There is nothing to run.
    Nothing {
        /// For the log.
        message: String,
        /// How it is logged.
        severity: Severity,
        /// What the step ends with.
        exit_code: i32,
    },
}

impl Plan {
    /// A single command.
    #[must_use]
    pub fn one(command: Command) -> Self {
        Self::Run(vec![command])
    }

    /// A step that succeeds without doing anything, with a word on it.
    #[must_use]
    pub fn skip(severity: Severity, message: impl Into<String>) -> Self {
        Self::Nothing { message: message.into(), severity, exit_code: 0 }
    }

    /// A step that cannot be done: 127, as a shell says it of a command that is not there.
    #[must_use]
    pub fn missing(message: impl Into<String>) -> Self {
        Self::Nothing { message: message.into(), severity: Severity::Error, exit_code: 127 }
    }

    /// `build` of a language without one.
    #[must_use]
    pub fn no_build() -> Self {
        Self::skip(Severity::Info, "this runtime has no build of its own")
    }

    /// `code` for a language without a query mode.
    #[must_use]
    pub fn no_query() -> Self {
        Self::missing("this runtime has no query mode")
    }
}

/// A file of the working directory as an argument that no program takes for an option.
pub(super) fn argument(path: &Path) -> OsString {
    if path.is_absolute() || path.as_os_str().as_encoded_bytes().starts_with(b"./") {
        return path.into();
    }
    let mut argument = OsString::from("./");
    argument.push(path);
    argument
}
