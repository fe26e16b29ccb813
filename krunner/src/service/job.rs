//! One service from its request to its exit, as a job of the supervisor that is never restarted.
//!
//! ```text
//!           its predecessor's end, the session's start, actions       port open
//! Starting: waiting ──────────────────────────────────▶ running ─────────────────▶ Ready
//!    │ error                                              │ exit                     │ exit
//!    ▼                                                    ▼                          ▼
//! Stopped: failed                                      Stopped: exited ◀──────────────┘
//! ```
//!
//! A program that exits with 0 and leaves a listener on the port daemonized: see `daemon`. A listener of the same user that
//! exists before the start is taken for the service (`bootstrap.sh` may have started it): it is ready as one that was already
//! running, and ends when it no longer listens.
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
use super::start_error::PrepareError;
use super::startup::StartProgress;
use super::template::Variables;
use crate::config::ChildEnv;
use crate::error::chain;
use crate::process::{Control, Launcher, enter};
use crate::supervisor::{
    self, Attempt, AttemptEnd, Job, JobState, PortOwner, PortReadiness, PortTaken, ProgramExit, ProgramLaunch,
    Progress, RestartPolicy, StartStage, SupervisedProgram,
};
use crate::tasks::blocking;

/// For all actions of a service together; some install packages.
const ACTIONS_DEADLINE: Duration = Duration::from_mins(10);

/// For a stopped predecessor or action to exit.
const ENDING_DEADLINE: Duration = Duration::from_secs(5);

/// How long a listener that no program of this session started must stay, to be taken for the service. What a container
/// ends gets 2 s from SIGTERM to SIGKILL.
const STRANGER_PATIENCE: Duration = Duration::from_millis(2500);

/// The answer to a request for a service that is stopping and has not ended yet.
pub(super) const BEING_STOPPED: &str = "it is being stopped";

/// The state of a service.
pub(super) type ServiceState = JobState<ServiceOrigin, ServiceEnd>;

/// Where a service that is ready comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServiceOrigin {
    /// This job started it.
    Started,
    /// A program of the same user listened on the port before the start.
    AlreadyRunning,
}

/// How a service ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ServiceEnd {
    /// It was not started, and why.
    Failed(String),
    Exited(ProgramExit),
    /// The program of [`ServiceOrigin::AlreadyRunning`] no longer listens.
    PortClosed,
}

type ServiceProgress = Progress<ServiceOrigin, ServiceEnd>;

/// The result of the preparation.
enum Prepared {
    Launch(ProgramLaunch),
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

/// A handle on a service. Clones refer to the same one.
#[derive(Clone)]
pub(super) struct ServiceHandle {
    /// The port that the service listens on.
    pub(super) port: u16,
    job: Job<ServiceOrigin, ServiceEnd>,
}

impl ServiceHandle {
    pub(super) fn state(&self) -> ServiceState {
        self.job.state()
    }

    /// Waits until the service is no longer being prepared, at most until the deadline; returns the state by then.
    pub(super) async fn wait_out_preparation(&self, deadline: Instant) -> ServiceState {
        let _ = timeout_at(deadline, self.job.wait_for(|state| !is_prepared(state))).await;
        self.state()
    }

    /// Waits until the service can be used or ended.
    pub(super) async fn ready_or_stopped(&self) {
        self.job.settled().await;
    }

    /// Waits until the service ran for this long or ended; returns the state by then.
    pub(super) async fn wait_out_grace(&self, grace: Duration) -> ServiceState {
        self.job.wait_for(|state| !is_prepared(state)).await;
        let _ = timeout(grace, self.stopped()).await;
        self.state()
    }

    /// Waits until the service ended.
    pub(super) async fn stopped(&self) {
        self.job.stopped().await;
    }

    pub(super) fn stop(&self) {
        self.job.stop();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.job.is_stopping()
    }
}

/// Whether nothing runs yet.
fn is_prepared(state: &ServiceState) -> bool {
    matches!(state, JobState::Starting(StartStage::Waiting(_)))
}

impl Attempt for ServiceJob {
    type Ready = ServiceOrigin;
    type End = ServiceEnd;

    async fn run(&mut self, progress: &ServiceProgress) -> AttemptEnd<ServiceEnd> {
        AttemptEnd::Final(self.serve(progress).await)
    }
}

impl ServiceJob {
    /// Starts the job.
    pub(super) fn start(self) -> ServiceHandle {
        let (port, tasks, name) = (self.port, self.launcher.tasks.clone(), self.name.clone());
        ServiceHandle { port, job: Job::spawn(&tasks, "service", name, RestartPolicy::Never, self) }
    }

    async fn serve(&mut self, progress: &ServiceProgress) -> ServiceEnd {
        if let Some(predecessor) = self.predecessor.take() {
            let _ = timeout(ENDING_DEADLINE, predecessor.stopped()).await;
        }
        if !self.wait_for_session_start(progress).await {
            return ServiceEnd::Failed("stopped before the session had started".to_owned());
        }
        let launch = match self.prepare(progress).await {
            Ok(Prepared::Launch(launch)) => launch,
            Ok(Prepared::Adopt(owner)) => {
                tracing::info!("service {} is already running: {owner} listens on port {}", self.name, self.port);
                progress.ready(ServiceOrigin::AlreadyRunning);
                daemon::follow(&self.name, self.port, progress.control()).await;
                return ServiceEnd::PortClosed;
            }
            Err(error) => return self.failed(&error),
        };
        match self.run_program(&launch, progress).await {
            Ok(exit) => ServiceEnd::Exited(exit),
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&self, error: &PrepareError) -> ServiceEnd {
        let problem = chain(error);
        tracing::warn!("cannot start service {}: {problem}", self.name);
        ServiceEnd::Failed(problem)
    }

    /// Runs the program, and follows the daemon that it may leave.
    async fn run_program(
        &self,
        launch: &ProgramLaunch,
        progress: &ServiceProgress,
    ) -> Result<ProgramExit, PrepareError> {
        progress.waits_for("its program to start");
        let readiness = PortReadiness::of_free_port(self.port).await?;
        let program = SupervisedProgram::start(&self.launcher, launch, progress.control()).await?;
        tracing::info!("Service {} has started (pid: {}, port: {})", self.name, program.pid(), self.port);
        let exit = program.watch(readiness, ServiceOrigin::Started, progress).await;
        if daemon::may_have_forked(&exit) {
            let patience = if exit.was_ready { Duration::ZERO } else { daemon::LISTEN_TIMEOUT };
            if supervisor::wait_until_in_session(self.port, true, patience).await {
                tracing::info!("service {} continues in the background", self.name);
                progress.ready(ServiceOrigin::Started);
                daemon::follow(&self.name, self.port, progress.control()).await;
            }
        }
        Ok(exit)
    }

    /// Waits for the runtime and the bootstrap script, and takes over the environment of children; `false` if the service is
    /// stopped meanwhile.
    async fn wait_for_session_start(&mut self, progress: &ServiceProgress) -> bool {
        loop {
            let start = self.startup.borrow_and_update().clone();
            let Some(pending) = start.phase.pending() else {
                self.env = start.env.map_or_else(|| self.env.clone(), |env| (*env).clone());
                return true;
            };
            progress.waits_for(pending);
            tokio::select! {
                changed = self.startup.changed() => if changed.is_err() { return false },
                () = progress.control().terminated() => return false,
            }
        }
    }

    /// Everything before the process starts. All checks come before the first action.
    async fn prepare(&mut self, progress: &ServiceProgress) -> Result<Prepared, PrepareError> {
        check(&self.definition, &self.variables)?;
        if let Some(directory) = self.directory.clone() {
            let shown = directory.display().to_string();
            progress.waits_for(format!("the directory {shown}"));
            // It may be on a network mount that hangs.
            if let Err(error) = blocking(move || enter(&directory)).await {
                return Err(match error.kind() {
                    ErrorKind::NotFound | ErrorKind::NotADirectory => PrepareError::NoDirectory(shown),
                    _ => PrepareError::ClosedDirectory { directory: shown, error },
                });
            }
        }
        if let Some(owner) = self.port_owner(progress).await? {
            return Ok(Prepared::Adopt(owner));
        }
        let variables = self.run_actions_in_time(progress).await?;
        // An action may have started it.
        if let Some(owner) = self.port_owner(progress).await? {
            return Ok(Prepared::Adopt(owner));
        }
        let resolved = resolve(&self.definition, &self.options, &variables)?;
        let mut command = resolved.command();
        if let Some(directory) = &self.directory {
            command = command.in_directory(directory);
        }
        let env = resolved.environment(&self.env, self.own_libraries.as_os_str());
        Ok(Prepared::Launch(ProgramLaunch { name: self.name.clone(), command, env }))
    }

    /// The user's own program that listens on the port, if any. An error if it is another user's or another service.
    async fn port_owner(&self, progress: &ServiceProgress) -> Result<Option<PortOwner>, PrepareError> {
        let Some(owner) = supervisor::port_owner(self.port).await else { return Ok(None) };
        if !owner.is_users_own() || self.port_is_shared {
            return Err(PortTaken { port: self.port, owner }.into());
        }
        if owner.is_of_this_session() {
            return Ok(Some(owner));
        }
        // A service of a former runner may be about to exit.
        progress.waits_for(format!("{owner} to leave port {} or to stay", self.port));
        tokio::select! {
            closes = supervisor::wait_until(self.port, false, STRANGER_PATIENCE) => Ok((!closes).then_some(owner)),
            () = progress.control().terminated() => Err(PrepareError::Stopped),
        }
    }

    async fn run_actions_in_time(&self, progress: &ServiceProgress) -> Result<Variables, PrepareError> {
        let own = Control::new();
        let actions = self.run_actions(progress, &own);
        tokio::pin!(actions);
        let problem = tokio::select! {
            outcome = &mut actions => return outcome,
            () = progress.control().terminated() => PrepareError::Stopped,
            () = sleep(ACTIONS_DEADLINE) => PrepareError::SlowActions(ACTIONS_DEADLINE),
        };
        own.terminate();
        // A command gets time to exit; an action that hangs on a mount is abandoned.
        let _ = timeout(ENDING_DEADLINE, actions).await;
        Err(problem)
    }

    /// Performs the actions in order and returns the variables with their results.
    async fn run_actions(&self, progress: &ServiceProgress, control: &Control) -> Result<Variables, PrepareError> {
        let mut variables = self.variables.clone();
        let context = ActionContext { launcher: &self.launcher, env: &self.env, control };
        for action in &self.definition.prestart_actions {
            let name = action.kind.name();
            progress.waits_for(format!("the action `{name}`"));
            let result = context.perform(&action.kind, &variables).await;
            let value = result.map_err(|source| PrepareError::Action { name, source })?;
            if let Some(reference) = &action.reference {
                variables.insert(reference.clone(), value);
            }
        }
        Ok(variables)
    }
}
