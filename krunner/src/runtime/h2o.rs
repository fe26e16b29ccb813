//! `vendor.h2o`: Python beside H2O Driverless AI, whose daemon lives as long as the session.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use super::engine::{Engine, EngineContext};
use super::plan::Plan;
use super::python::Python;
use super::traits::{InitContext, InitError, Runtime};
use crate::error::chain;
use crate::process::{Command, CommandOutcome, Control};
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
    async fn init(&self, context: InitContext<'_>) -> Result<(), InitError> {
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

    fn engine(&self, context: EngineContext) -> Option<Arc<dyn Engine>> {
        let daemon = Control::new();
        let start = run_daemon(context.clone(), daemon.clone());
        context.launcher.tasks.spawn("h2o daemon", start);
        let kernel = self.python.engine(context)?;
        Some(Arc::new(WithDaemon { daemon, kernel }))
    }
}

/// Runs the daemon's script. It may exit early and leave children, which the runner stops at the end.
async fn run_daemon(context: EngineContext, control: Control) {
    let EngineContext { launcher, env, paths, .. } = context;
    let script = paths.h2o_daemon();
    let candidate = script.clone();
    if !blocking(move || candidate.is_file()).await {
        return tracing::error!("cannot start the H2O daemon: {} does not exist", script.display());
    }
    tracing::info!("starting the H2O daemon: {}", script.display());
    match launcher.run(&Command::argv([&script]), &env, &control).await {
        Ok(CommandOutcome::Exited(exit)) if exit.code() != 0 => {
            tracing::error!("{} exited with code {}; H2O may not be available", script.display(), exit.code());
        }
        Ok(outcome) => tracing::debug!("{} finished: {outcome:?}", script.display()),
        Err(error) => tracing::error!("cannot start the H2O daemon: {}", chain(&error)),
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
