//! The commands of a step.

use std::ffi::OsString;
use std::path::Path;

use crate::process::Command;

/// Log level of a plan without commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    /// The normal case.
    Info,
    /// Unusual, but not a failure.
    Warning,
    /// The step fails.
    Error,
}

/// The commands of a step, or why there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Run these in order; the first failure ends the step with its exit code.
    Run(Vec<Command>),
    /// There is nothing to run.
    Nothing {
        /// The reason, for the log.
        message: String,
        /// The log level.
        severity: Severity,
        /// Exit code of the step.
        exit_code: i32,
    },
}

impl Plan {
    /// A single command.
    #[must_use]
    pub(crate) fn one(command: Command) -> Self {
        Self::Run(vec![command])
    }

    /// A step that succeeds without running anything.
    #[must_use]
    pub(crate) fn skip(severity: Severity, message: impl Into<String>) -> Self {
        Self::Nothing { message: message.into(), severity, exit_code: 0 }
    }

    /// A step that cannot run: exit code 127, as a shell's for a missing command.
    #[must_use]
    pub(crate) fn missing(message: impl Into<String>) -> Self {
        Self::Nothing { message: message.into(), severity: Severity::Error, exit_code: 127 }
    }

    /// The plan of `build` for a language without a build step.
    #[must_use]
    pub(crate) fn no_build() -> Self {
        Self::skip(Severity::Info, "this runtime has no build step")
    }

    /// The plan of `code` for a language without a query mode.
    #[must_use]
    pub(crate) fn no_query() -> Self {
        Self::missing("this runtime has no query mode")
    }
}

/// A file of the working directory as an argument that cannot be mistaken for an option.
pub(super) fn argument(path: &Path) -> OsString {
    if path.is_absolute() || path.as_os_str().as_encoded_bytes().starts_with(b"./") {
        return path.into();
    }
    let mut argument = OsString::from("./");
    argument.push(path);
    argument
}
