//! What comes before the first step: the runtime's own preparations and the user's bootstrap script; and, beside them,
//! the services of every session.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::intrinsic::Intrinsic;
use crate::config::{ChildEnv, Paths, Ports};
use crate::error::chain;
use crate::process::{Command, Control, InputSource, Launcher};
use crate::runtime::{Engine, InitContext, Runtime, Surroundings};
use crate::service::intrinsic::Planner;
use crate::tasks::blocking;
use crate::terminal::Line;

/// Shells that can run a bootstrap script, best first.
const POSIX_SHELLS: [&str; 7] =
    ["/bin/sh", "/usr/bin/sh", "/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash", "/bin/dash", "/bin/ash"];

/// How long the bootstrap script, which may add to them, waits for the user's ssh keys: they take a second, and many
/// with a fraction of a processor.
const KEYS_PATIENCE: Duration = Duration::from_secs(30);

/// Prepares for steps. A part that fails is told, and the rest goes on.
pub(super) struct Preparation {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) launcher: Launcher,
    pub(super) paths: Paths,
    pub(super) ports: Ports,
    pub(super) input: Arc<dyn InputSource>,
    pub(super) line: Option<Arc<dyn Line>>,
    /// Reaches the bootstrap script while it runs.
    pub(super) control: Control,
    /// Told of the environment before the bootstrap script runs, which may take long.
    pub(super) runtime_ready: oneshot::Sender<ChildEnv>,
}

/// What steps run with.
pub(super) struct Prepared {
    pub(super) env: ChildEnv,
    pub(super) engine: Option<Arc<dyn Engine>>,
    pub(super) intrinsic: Intrinsic,
}

impl Preparation {
    /// Prepares, in this order: the runtime, its engine, the bootstrap script.
    pub(super) async fn run(self, mut env: ChildEnv) -> Prepared {
        let context =
            InitContext { launcher: &self.launcher, paths: &self.paths, control: &self.control, env: &mut env };
        if let Err(problem) = self.runtime.init(context).await {
            tracing::warn!("the runtime is not fully set up: {problem}");
        }
        // Whoever waits for it may have given up.
        let _ = self.runtime_ready.send(env.clone());
        // It starts beside the bootstrap script.
        let engine = self.runtime.engine(Surroundings {
            launcher: self.launcher.clone(),
            env: env.clone(),
            paths: self.paths.clone(),
            input: Arc::clone(&self.input),
            line: self.line.clone(),
        });
        let planner = Planner::new(self.paths.clone(), self.ports, self.launcher.clone(), env.clone());
        let (mut intrinsic, keys_placed) = Intrinsic::prepare(planner);
        let script = self.paths.bootstrap();
        let candidate = script.clone();
        if blocking(move || candidate.is_file()).await {
            tokio::select! {
                placed = timeout(KEYS_PATIENCE, keys_placed) => {
                    if placed.is_err() {
                        tracing::warn!("the bootstrap script is run without waiting any longer for ssh keys");
                    }
                    bootstrap(&self.launcher, &self.control, &script, &env).await;
                }
                () = self.control.terminated() => {}
            }
        }
        intrinsic.begin();
        Prepared { env, engine, intrinsic }
    }
}

async fn bootstrap(launcher: &Launcher, control: &Control, script: &Path, env: &ChildEnv) {
    let Some(shell) = POSIX_SHELLS.into_iter().find(|shell| Path::new(shell).is_file()) else {
        tracing::error!("{} is not run: none of {} exists", script.display(), POSIX_SHELLS.join(", "));
        return;
    };
    tracing::info!("running the bootstrap script {}", script.display());
    control.forget_interrupts();
    let command = Command::argv([shell.as_ref(), script.as_os_str()]);
    match launcher.run(&command, env, control).await {
        Ok(outcome) => tracing::info!("the bootstrap script has exited with code {}", outcome.code()),
        Err(error) => tracing::error!("the bootstrap script was not run: {}", chain(&error)),
    }
}
