//! What every language answers.

use std::io;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use super::engine::{Engine, Surroundings};
use super::plan::{Plan, Severity};
use super::scratch::Scratch;
use crate::config::{ChildEnv, Paths};
use crate::process::{Command, Control, Launcher};

/// What a runtime may use while it starts.
pub struct InitContext<'a> {
    /// For probes.
    pub launcher: &'a Launcher,
    /// Where things are.
    pub paths: &'a Paths,
    /// Ends the probes when the runner stops.
    pub control: &'a Control,
    /// The environment of children, to be completed.
    pub env: &'a mut ChildEnv,
}

/// One language. The methods with `directory` look at the files there, the runner's working directory.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Completes the environment and installs helpers, before the first step.
    ///
    /// # Errors
    /// A sentence for the log; the session goes on without.
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

    /// `code`: writes the files it takes, and says what to run.
    ///
    /// # Errors
    /// When the files cannot be made.
    fn query(&self, _code: &str, _scratch: &mut Scratch) -> io::Result<Plan> {
        Ok(Plan::no_query())
    }

    /// Folders' contents that show what the steps with `*` do, for `krunner languages`.
    fn examples(&self) -> Vec<Vec<String>> {
        Vec::new()
    }

    /// What runs `code` in place of a file, for languages that have such a thing. Called once, after
    /// [`Self::init`]; must not wait.
    fn engine(&self, _surroundings: Surroundings) -> Option<Arc<dyn Engine>> {
        None
    }
}

/// `build` with `*`: a Makefile goes before what the language does.
pub fn make_or_build(runtime: &dyn Runtime, directory: &Path) -> Plan {
    if directory.join("Makefile").is_file() {
        return Plan::one(Command::shell("make"));
    }
    runtime.build(directory)
}
