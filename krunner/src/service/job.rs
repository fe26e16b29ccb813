//! One service from its request to its exit.
//!
//! ```text
//!                actions done            port open
//! Preparing ───────────────▶ Starting ─────────────▶ Ready
//!     │ error                    │ exit                 │ exit
//!     ▼                          ▼                      │
//!   Failed                     Exited ◀──────────────────┘
//! ```
//!
//! A program that exits with 0 and leaves a listener on the port daemonized: see `daemon`. A listener of the same user that
//! exists before the start is taken for the service (`bootstrap.sh` may have started it): the state is `AlreadyRunning`, then
//! `PortClosed`.
//!
//! The job continues even if no request waits for it any more. Stopping it also stops the command of an action.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::action::ActionContext;
use super::daemon;
use super::definition::Definition;
use super::launch::{UserOptions, check, resolve};
use super::listeners::{self, PortOwner};
use super::process::{ProcessPhase, ServiceExit, ServiceLaunch, ServiceProcess, ServiceStartError};
use super::start_error::PrepareError;
use super::startup::StartProgress;
use super::template::Variables;
use crate::config::ChildEnv;
use crate::error::chain;
use crate::process::{Control, Launcher, enter};
use crate::tasks::blocking;

/// For all actions of a service together; some install packages.
const ACTIONS_DEADLINE: Duration = Duration::from_mins(10);

/// For a stopped predecessor or action to exit.
const ENDING_DEADLINE: Duration = Duration::from_secs(5);

/// The state of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ServiceState {
    /// What the service waits for, for messages.
    Preparing(String),
    Starting,
    Ready,
    /// A program of the same user listened on the port before the start.
    AlreadyRunning,
    /// It was not started, and why.
    Failed(String),
    Exited(ServiceExit),
    /// The program of [`Self::AlreadyRunning`] no longer listens.
    PortClosed,
}

impl ServiceState {
    pub(super) fn is_finished(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Exited(_) | Self::PortClosed)
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Ready | Self::AlreadyRunning)
    }
}

/// The result of the preparation.
enum Prepared {
    Launch(ServiceLaunch),
    /// A program that already listens is the service.
    Adopt(PortOwner),
}

/// Everything needed to start one service.
pub(super) struct ServiceJob {
    pub(super) name: String,
    pub(super) definition: Definition,
    pub(super) options: UserOptions,
    pub(super) variables: Variables,
    pub(super) directory: Option<PathBuf>,
    pub(super) port: u16,
    /// Another service uses the same port, so a listener there belongs to it.
    pub(super) port_is_shared: bool,
    pub(super) env: ChildEnv,
    /// Directory of the runner's own libraries.
    pub(super) own_libraries: PathBuf,
    pub(super) startup: watch::Receiver<StartProgress>,
    pub(super) launcher: Launcher,
    /// The service of the same name that is still stopping.
    pub(super) predecessor: Option<ServiceHandle>,
}

/// A handle on a job.
#[derive(Clone)]
pub(super) struct ServiceHandle {
    /// The port that the service listens on.
    pub(super) port: u16,
    progress: watch::Receiver<ServiceState>,
    control: Control,
}

impl ServiceHandle {
    pub(super) fn state(&self) -> ServiceState {
        self.progress.borrow().clone()
    }

    /// Waits for a state, at most until the deadline; returns the state by then.
    pub(super) async fn wait_for(
        &mut self,
        deadline: Instant,
        is_it: impl FnMut(&ServiceState) -> bool,
    ) -> ServiceState {
        let _ = timeout_at(deadline, self.progress.wait_for(is_it)).await;
        self.state()
    }

    /// Waits until the port is open or the job finished.
    pub(super) async fn ready_or_finished(&mut self) {
        let _ = self.progress.wait_for(|progress| progress.is_open() || progress.is_finished()).await;
    }

    /// Waits until the service ran for this long or finished.
    pub(super) async fn wait_out_grace(&mut self, grace: Duration) {
        let _ = self.progress.wait_for(|progress| !matches!(progress, ServiceState::Preparing(_))).await;
        let _ = timeout(grace, self.progress.wait_for(ServiceState::is_finished)).await;
    }

    /// Waits until the job finished.
    pub(super) async fn finished(&mut self) {
        let _ = self.progress.wait_for(ServiceState::is_finished).await;
    }

    pub(super) fn stop(&self) {
        self.control.terminate();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.control.is_terminated()
    }
}

impl ServiceJob {
    /// Spawns the job.
    pub(super) fn start(self) -> ServiceHandle {
        let (tell, progress) = watch::channel(ServiceState::Preparing("its turn".to_owned()));
        let control = Control::new();
        let handle = ServiceHandle { port: self.port, progress, control: control.clone() };
        let tasks = self.launcher.tasks.clone();
        tasks.spawn("service job", async move {
            let over = self.run(&tell, &control).await;
            tell.send_replace(over);
        });
        handle
    }

    async fn run(mut self, tell: &watch::Sender<ServiceState>, control: &Control) -> ServiceState {
        if let Some(mut predecessor) = self.predecessor.take() {
            let _ = timeout(ENDING_DEADLINE, predecessor.finished()).await;
        }
        if !self.wait_for_session_start(tell, control).await {
            return ServiceState::Failed("stopped before the session had started".to_owned());
        }
        match self.prepare(tell, control).await {
            Ok(Prepared::Launch(launch)) => self.supervise(&launch, tell, control).await,
            Ok(Prepared::Adopt(owner)) => {
                tracing::info!("service {} is already running: {owner} listens on port {}", self.name, self.port);
                tell.send_replace(ServiceState::AlreadyRunning);
                daemon::follow(&self.name, self.port, control).await;
                ServiceState::PortClosed
            }
            Err(error) => {
                let problem = chain(&error);
                tracing::warn!("cannot start service {}: {problem}", self.name);
                ServiceState::Failed(problem)
            }
        }
    }

    async fn supervise(
        &self,
        launch: &ServiceLaunch,
        tell: &watch::Sender<ServiceState>,
        control: &Control,
    ) -> ServiceState {
        tell.send_replace(ServiceState::Preparing("its program to start".to_owned()));
        match ServiceProcess::start(&self.launcher, launch, control).await {
            Ok(service) => {
                tracing::info!("Service {} has started (pid: {}, port: {})", self.name, service.pid(), self.port);
                match follow(service, tell).await {
                    ProcessEnd::Service(ended) => ServiceState::Exited(ended),
                    ProcessEnd::FirstProcess { ended, was_open } => {
                        let patience = if was_open { Duration::ZERO } else { daemon::LISTEN_TIMEOUT };
                        if daemon::wait_for_listener(self.port, patience).await {
                            tracing::info!("service {} continues in the background", self.name);
                            tell.send_replace(ServiceState::Ready);
                            daemon::follow(&self.name, self.port, control).await;
                        }
                        ServiceState::Exited(ended)
                    }
                }
            }
            Err(error) => {
                let problem = chain(&error);
                tracing::warn!("cannot start service {}: {problem}", self.name);
                ServiceState::Failed(problem)
            }
        }
    }

    /// Waits for the runtime and the bootstrap script, and takes over the environment of children; `false` if the service is
    /// stopped meanwhile.
    async fn wait_for_session_start(&mut self, tell: &watch::Sender<ServiceState>, control: &Control) -> bool {
        loop {
            let progress = self.startup.borrow_and_update().clone();
            let Some(pending) = progress.phase.pending() else {
                self.env = progress.env.map_or_else(|| self.env.clone(), |env| (*env).clone());
                return true;
            };
            tell.send_replace(ServiceState::Preparing(pending.to_owned()));
            tokio::select! {
                changed = self.startup.changed() => if changed.is_err() { return false },
                () = control.terminated() => return false,
            }
        }
    }

    /// Everything before the process starts. All checks come before the first action.
    async fn prepare(
        &mut self,
        tell: &watch::Sender<ServiceState>,
        control: &Control,
    ) -> Result<Prepared, PrepareError> {
        check(&self.definition, &self.variables)?;
        if let Some(directory) = self.directory.clone() {
            let shown = directory.display().to_string();
            tell.send_replace(ServiceState::Preparing(format!("the directory {shown}")));
            // It may be on a network mount that hangs.
            if let Err(error) = blocking(move || enter(&directory)).await {
                return Err(match error.kind() {
                    ErrorKind::NotFound | ErrorKind::NotADirectory => PrepareError::NoDirectory(shown),
                    _ => PrepareError::ClosedDirectory { directory: shown, error },
                });
            }
        }
        if let Some(owner) = self.port_owner().await? {
            return Ok(Prepared::Adopt(owner));
        }
        let variables = self.run_actions_in_time(tell, control).await?;
        // An action may have started it.
        if let Some(owner) = self.port_owner().await? {
            return Ok(Prepared::Adopt(owner));
        }
        let resolved = resolve(&self.definition, &self.options, &variables)?;
        let mut command = resolved.command();
        if let Some(directory) = &self.directory {
            command = command.in_directory(directory);
        }
        let env = resolved.environment(&self.env, self.own_libraries.as_os_str());
        Ok(Prepared::Launch(ServiceLaunch { name: self.name.clone(), command, env, port: Some(self.port) }))
    }

    /// The user's own program that listens on the port, if any. An error if it is another user's or another service.
    async fn port_owner(&self) -> Result<Option<PortOwner>, ServiceStartError> {
        let Some(owner) = listeners::port_owner(self.port).await else { return Ok(None) };
        if owner.is_users_own() && !self.port_is_shared {
            return Ok(Some(owner));
        }
        Err(ServiceStartError::PortTaken { port: self.port, owner: owner.to_string() })
    }

    async fn run_actions_in_time(
        &self,
        tell: &watch::Sender<ServiceState>,
        control: &Control,
    ) -> Result<Variables, PrepareError> {
        let own = Control::new();
        let actions = self.run_actions(tell, &own);
        tokio::pin!(actions);
        let problem = tokio::select! {
            outcome = &mut actions => return outcome,
            () = control.terminated() => PrepareError::Stopped,
            () = sleep(ACTIONS_DEADLINE) => PrepareError::SlowActions(ACTIONS_DEADLINE),
        };
        own.terminate();
        // A command gets time to exit; an action that hangs on a mount is abandoned.
        let _ = timeout(ENDING_DEADLINE, actions).await;
        Err(problem)
    }

    /// Performs the actions in order and returns the variables with their results.
    async fn run_actions(
        &self,
        tell: &watch::Sender<ServiceState>,
        control: &Control,
    ) -> Result<Variables, PrepareError> {
        let mut variables = self.variables.clone();
        let context = ActionContext { launcher: &self.launcher, env: &self.env, control };
        for action in &self.definition.prestart_actions {
            let name = action.kind.name();
            tell.send_replace(ServiceState::Preparing(format!("the action `{name}`")));
            let result = context.perform(&action.kind, &variables).await;
            let value = result.map_err(|source| PrepareError::Action { name, source })?;
            if let Some(reference) = &action.reference {
                variables.insert(reference.clone(), value);
            }
        }
        Ok(variables)
    }
}

/// How a process exited.
enum ProcessEnd {
    Service(ServiceExit),
    /// It may have daemonized.
    FirstProcess {
        ended: ServiceExit,
        was_open: bool,
    },
}

/// Watches a process until it exits and publishes its state.
async fn follow(mut service: ServiceProcess, tell: &watch::Sender<ServiceState>) -> ProcessEnd {
    tell.send_replace(ServiceState::Starting);
    let mut was_open = false;
    loop {
        match service.changed().await {
            ProcessPhase::Starting => {}
            ProcessPhase::Listening => {
                was_open = true;
                tell.send_replace(ServiceState::Ready);
            }
            ProcessPhase::Exited(ended) if daemon::may_have_forked(&ended) => {
                return ProcessEnd::FirstProcess { ended, was_open };
            }
            ProcessPhase::Exited(ended) => return ProcessEnd::Service(ended),
        }
    }
}
