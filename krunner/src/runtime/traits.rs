//! The interface of a language.

use std::io;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use super::engine::{Engine, EngineContext};
use super::plan::{Plan, Severity};
use super::scratch::ScratchFiles;
use crate::config::{ChildEnv, Paths};
use crate::process::{Command, Control, Launcher};

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

/// A language. Methods with `directory` look at the files there; it is the runner's working directory.
#[async_trait]
pub(crate) trait Runtime: Send + Sync {
    /// Completes the environment and installs helpers, before the first step.
    ///
    /// # Errors
    /// A sentence for the log; the session continues.
    async fn init(&self, _context: InitContext<'_>) -> Result<(), String> {
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
