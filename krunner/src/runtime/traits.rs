//! The interface of a language.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use super::engine::{Engine, EngineContext};
use super::plan::{Plan, Severity};
use super::scratch::ScratchFiles;
use crate::config::{ChildEnv, Paths};
use crate::error::chain;
use crate::process::{CaptureError, Command, Control, Launcher, SpawnError};

/// The dependencies of [`Runtime::init`].
pub(crate) struct InitContext<'a> {
    /// Starts the probes.
    pub launcher: &'a Launcher,
    /// Paths of the container.
    pub paths: &'a Paths,
    /// Stops the probes when the runner shuts down.
    pub control: &'a Control,
    /// The environment of children, which the runtime completes.
    pub env: &'a mut ChildEnv,
}

/// Why a session starts without some of a language's helpers. Each text contains its causes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    /// The interpreter did not answer the probe.
    #[error("{}", chain(.0))]
    Probe(CaptureError),
    /// The probe found no place for the helpers.
    #[error("the interpreter reported {} as its user site directory, which is not an absolute path", .0.display())]
    UserSite(PathBuf),
    /// A helper cannot be written.
    #[error("cannot write {}: {}", file.display(), chain(.error))]
    Write {
        /// Path of the helper.
        file: PathBuf,
        /// The OS error behind it.
        error: io::Error,
    },
    /// A script of the image did not start.
    #[error("cannot run {}: {}", script.display(), chain(.error))]
    NotStarted {
        /// Path of the script.
        script: PathBuf,
        /// Why it did not start.
        error: SpawnError,
    },
    /// A script of the image failed.
    #[error("{} exited with code {code}", script.display())]
    ScriptFailed {
        /// Path of the script.
        script: PathBuf,
        /// Its exit code, negative for a signal.
        code: i32,
    },
}

/// A language. Methods with `directory` look at the files there; it is the runner's working directory.
#[async_trait]
pub(crate) trait Runtime: Send + Sync {
    /// Completes the environment and installs helpers, before the first step.
    ///
    /// # Errors
    /// With a text for the log; the session continues.
    async fn init(&self, _context: InitContext<'_>) -> Result<(), InitError> {
        Ok(())
    }

    /// `clean` with `*`.
    fn clean(&self, _directory: &Path) -> Plan {
        Plan::skip(Severity::Info, "this runtime has nothing to clean")
    }

    /// `build` with `*` where there is no Makefile; see [`make_or_build`].
    fn build(&self, _directory: &Path) -> Plan {
        Plan::no_build()
    }

    /// `exec` with `*`.
    fn execute(&self, directory: &Path) -> Plan;

    /// `code`: writes the necessary files and returns the commands.
    ///
    /// # Errors
    /// When the files cannot be created.
    fn query(&self, _code: &str, _scratch: &mut ScratchFiles) -> io::Result<Plan> {
        Ok(Plan::no_query())
    }

    /// Lists of files that show what the steps with `*` do, for `krunner languages`.
    fn examples(&self) -> Vec<Vec<String>> {
        Vec::new()
    }

    /// Describes what [`Self::engine`] passes `code` to, for `krunner languages`.
    fn code_goes_to(&self) -> Option<String> {
        None
    }

    /// Whether [`Self::engine`] needs a [`TerminalTransport`](crate::terminal::TerminalTransport).
    fn has_terminal(&self) -> bool {
        false
    }

    /// The engine that runs `code`, for languages that have one. Called once, after [`Self::init`]; must not block.
    fn engine(&self, _context: EngineContext) -> Option<Arc<dyn Engine>> {
        None
    }
}

/// `build` with `*`: a Makefile takes precedence over the language's own build.
pub(crate) fn make_or_build(runtime: &dyn Runtime, directory: &Path) -> Plan {
    if directory.join("Makefile").is_file() {
        return Plan::one(Command::shell("make"));
    }
    runtime.build(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_texts_contain_their_causes() {
        let (script, file) = (PathBuf::from("/opt/start.sh"), PathBuf::from("/site/x.py"));
        let refused = || SpawnError::Refused { path: "x".into(), source: io::ErrorKind::OutOfMemory.into() };
        let errors = [
            InitError::Probe(refused().into()),
            InitError::UserSite("site".into()),
            InitError::Write { file, error: io::ErrorKind::PermissionDenied.into() },
            InitError::NotStarted { script: script.clone(), error: refused() },
            InitError::ScriptFailed { script, code: 3 },
        ];
        insta::assert_snapshot!(errors.map(|error| error.to_string()).join("\n"), @r"
        cannot start x: out of memory
        the interpreter reported site as its user site directory, which is not an absolute path
        cannot write /site/x.py: permission denied
        cannot run /opt/start.sh: cannot start x: out of memory
        /opt/start.sh exited with code 3
        ");
    }
}
