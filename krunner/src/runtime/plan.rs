//! What a step comes to.

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
}

/// A file of the working directory as an argument that no program takes for an option.
pub(super) fn argument(path: &Path) -> String {
    let text = path.to_string_lossy();
    if path.is_absolute() || text.starts_with("./") { text.into_owned() } else { format!("./{text}") }
}
