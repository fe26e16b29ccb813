//! Preparation before the first step: the runtime's initialization and the user's bootstrap script, and concurrently
//! sshd and ttyd.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::intrinsic::Intrinsic;
use crate::config::{ChildEnv, Paths, Ports};
use crate::error::chain;
use crate::process::{Command, Control, InputSource, Launcher};
use crate::runtime::{Engine, EngineContext, InitContext, Runtime};
use crate::service::StartPublisher;
use crate::service::intrinsic::Planner;
use crate::tasks::blocking;
use crate::terminal::TerminalTransport;

/// Shells that can run a bootstrap script, best first.
const POSIX_SHELLS: [&str; 7] =
    ["/bin/sh", "/usr/bin/sh", "/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash", "/bin/dash", "/bin/ash"];

/// How long the bootstrap script, which may add to them, waits for the user's ssh keys. Creating them takes a second,
/// or many seconds with a fraction of a CPU.
const KEYS_TIMEOUT: Duration = Duration::from_secs(30);

/// Prepares for steps. A part that fails is logged and the rest continues.
pub(super) struct Preparation {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) launcher: Launcher,
    pub(super) paths: Paths,
    pub(super) ports: Ports,
    pub(super) input: Arc<dyn InputSource>,
    pub(super) terminal_transport: Option<Arc<dyn TerminalTransport>>,
    /// Controls the bootstrap script while it runs.
    pub(super) control: Control,
    /// Publishes the progress of the start to services.
    pub(super) progress: StartPublisher,
}

/// The results of the preparation, which steps need.
pub(super) struct PreparedSession {
    pub(super) env: ChildEnv,
    pub(super) engine: Option<Arc<dyn Engine>>,
    pub(super) intrinsic: Intrinsic,
}

impl Preparation {
    /// Prepares, in this order: the runtime, its engine, the bootstrap script.
    pub(super) async fn run(self, mut env: ChildEnv) -> PreparedSession {
        let context =
            InitContext { launcher: &self.launcher, paths: &self.paths, control: &self.control, env: &mut env };
        if let Err(problem) = self.runtime.init(context).await {
            tracing::warn!("runtime setup incomplete: {problem}");
        }
        self.progress.runtime_ready(&env);
        // The engine starts concurrently with the bootstrap script.
        let engine = self.runtime.engine(EngineContext {
            launcher: self.launcher.clone(),
            env: env.clone(),
            paths: self.paths.clone(),
            input: Arc::clone(&self.input),
            terminal_transport: self.terminal_transport.clone(),
        });
        let planner = Planner::new(self.paths.clone(), self.ports, self.launcher.clone(), env.clone());
        let (intrinsic, keys_placed) = Intrinsic::prepare(planner);
        let script = self.paths.bootstrap();
        let candidate = script.clone();
        if blocking(move || candidate.is_file()).await {
            tokio::select! {
                placed = timeout(KEYS_TIMEOUT, keys_placed.cancelled()) => {
                    if placed.is_err() {
                        tracing::warn!("running the bootstrap script although the ssh keys are not in place yet");
                    }
                    bootstrap(&self.launcher, &self.control, &script, &env).await;
                }
                () = self.control.terminated() => {}
            }
        }
        self.progress.complete();
        intrinsic.begin();
        PreparedSession { env, engine, intrinsic }
    }
}

async fn bootstrap(launcher: &Launcher, control: &Control, script: &Path, env: &ChildEnv) {
    let Some(shell) = POSIX_SHELLS.into_iter().find(|shell| Path::new(shell).is_file()) else {
        tracing::error!("cannot run {}: none of {} exists", script.display(), POSIX_SHELLS.join(", "));
        return;
    };
    tracing::info!("running the bootstrap script {}", script.display());
    control.forget_interrupts();
    let command = Command::argv([shell.as_ref(), script.as_os_str()]);
    match launcher.run(&command, env, control).await {
        Ok(outcome) => tracing::info!("the bootstrap script exited with code {}", outcome.code()),
        Err(error) => tracing::error!("cannot start the bootstrap script: {}", chain(&error)),
    }
}
