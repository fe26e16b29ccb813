//! What every language answers.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use super::engine::{Engine, Surroundings};
use super::plan::{Plan, Severity};
use crate::config::{ChildEnv, Paths};
use crate::process::{Control, Launcher};

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

    /// `build` with `*` where there is no Makefile.
    fn build(&self, _directory: &Path) -> Plan {
        Plan::skip(Severity::Info, "this runtime has no build of its own")
    }

    /// `exec` with `*`.
    fn execute(&self, directory: &Path) -> Plan;

    /// The suffix of the temporary file that `code` is written to; `None` without a query mode.
    fn query_suffix(&self) -> Option<&'static str> {
        None
    }

    /// `code`, written to `source`.
    fn query(&self, _source: &Path) -> Plan {
        Plan::missing("this runtime has no query mode")
    }

    /// Whether there is to be a [`Line`](crate::terminal::Line) for [`Self::engine`].
    fn has_terminal(&self) -> bool {
        false
    }

    /// What runs `code` in place of a file, for languages that have such a thing. Called once, after
    /// [`Self::init`]; must not wait.
    fn engine(&self, _surroundings: Surroundings) -> Option<Arc<dyn Engine>> {
        None
    }
}
