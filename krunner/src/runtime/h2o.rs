//! `vendor.h2o`: Python beside H2O Driverless AI, whose daemon lives as long as the session.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use super::engine::{Engine, Surroundings};
use super::plan::Plan;
use super::python::Python;
use super::traits::{InitContext, Runtime};
use crate::error::chain;
use crate::process::{Command, Control, Outcome};
use crate::tasks::blocking;

pub(super) struct H2o {
    python: Python,
}

impl H2o {
    pub(super) fn new(interpreter: PathBuf) -> Self {
        Self { python: Python::new(interpreter) }
    }
}

#[async_trait]
impl Runtime for H2o {
    async fn init(&self, context: InitContext<'_>) -> Result<(), String> {
        self.python.init(context).await
    }

    fn build(&self, directory: &Path) -> Plan {
        self.python.build(directory)
    }

    fn execute(&self, directory: &Path) -> Plan {
        self.python.execute(directory)
    }

    fn code_goes_to(&self) -> Option<String> {
        self.python.code_goes_to()
    }

    fn examples(&self) -> Vec<Vec<String>> {
        self.python.examples()
    }

    fn engine(&self, surroundings: Surroundings) -> Option<Arc<dyn Engine>> {
        let daemon = Control::new();
        let start = run_daemon(surroundings.clone(), daemon.clone());
        surroundings.launcher.tasks.spawn("h2o daemon", start);
        let kernel = self.python.engine(surroundings)?;
        Some(Arc::new(WithDaemon { daemon, kernel }))
    }
}

/// Runs the daemon's script to its end, which may be soon: then its children are the runner's to end.
async fn run_daemon(surroundings: Surroundings, control: Control) {
    let Surroundings { launcher, env, paths, .. } = surroundings;
    let script = paths.h2o_daemon();
    let candidate = script.clone();
    if !blocking(move || candidate.is_file()).await {
        return tracing::error!("the H2O daemon is not started: there is no {}", script.display());
    }
    tracing::info!("starting the H2O daemon: {}", script.display());
    match launcher.run(&Command::argv([&script]), &env, &control).await {
        Ok(Outcome::Ended(exit)) if exit.code() != 0 => {
            tracing::error!("{} has ended with {}; H2O may not be there", script.display(), exit.code());
        }
        Ok(outcome) => tracing::debug!("{} has ended: {outcome:?}", script.display()),
        Err(error) => tracing::error!("the H2O daemon is not started: {}", chain(&error)),
    }
}

/// The kernel that runs `code`, and the daemon.
struct WithDaemon {
    daemon: Control,
    kernel: Arc<dyn Engine>,
}

#[async_trait]
impl Engine for WithDaemon {
    async fn run(&self, code: &str, control: &Control) -> i32 {
        self.kernel.run(code, control).await
    }

    async fn complete(&self, request: &str) -> Vec<String> {
        self.kernel.complete(request).await
    }

    fn interrupt(&self) {
        self.kernel.interrupt();
    }

    async fn stop(&self) {
        self.daemon.terminate();
        self.kernel.stop().await;
    }
}
