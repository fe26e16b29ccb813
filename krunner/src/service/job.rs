//! One service from its order to its end.
//!
//! ```text
//!                actions done            port open
//! Preparing ───────────────▶ Starting ─────────────▶ Open
//!     │ something is wrong       │ exit                 │ exit
//!     ▼                          ▼                      │
//!   Failed                     Ended ◀──────────────────┘
//! ```
//!
//! A program that ends well and leaves a listener on the port has gone into the background: see `daemon`.
//!
//! The job goes on whether or not somebody still waits for it. To stop it ends what runs, an action's command too.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::action::Workshop;
use super::daemon;
use super::definition::Definition;
use super::launch::{Chosen, assemble, check};
use super::listeners;
use super::supervised::{Ended, Launch, Phase, StartError, Supervised};
use super::template::Variables;
use crate::config::ChildEnv;
use crate::error::chain;
use crate::process::{Control, Launcher};
use crate::tasks::blocking;

/// For all actions of a service; some install packages.
const ACTIONS_DEADLINE: Duration = Duration::from_mins(10);

/// For what was told to end, a process before this one or an action.
const ENDING_DEADLINE: Duration = Duration::from_secs(5);

/// How far a service has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// What is being done.
    Preparing(String),
    Starting,
    Open,
    /// It was not started.
    Failed(String),
    Ended(Ended),
}

impl Progress {
    pub(super) fn is_over(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Ended(_))
    }
}

/// What a service is started from.
pub(super) struct Job {
    pub(super) name: String,
    pub(super) definition: Definition,
    pub(super) chosen: Chosen,
    pub(super) variables: Variables,
    pub(super) directory: Option<PathBuf>,
    pub(super) port: u16,
    pub(super) env: ChildEnv,
    /// Folder of libraries that are the runner's own.
    pub(super) own_libraries: PathBuf,
    pub(super) launcher: Launcher,
    /// The one before it, which is ending.
    pub(super) predecessor: Option<Handle>,
}

/// Reaches a job.
#[derive(Clone)]
pub(super) struct Handle {
    /// Where it is going to listen.
    pub(super) port: u16,
    progress: watch::Receiver<Progress>,
    control: Control,
}

impl Handle {
    pub(super) fn now(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Waits for a state, at most until the deadline; what it is then.
    pub(super) async fn reach(&mut self, deadline: Instant, is_it: impl FnMut(&Progress) -> bool) -> Progress {
        let _ = timeout_at(deadline, self.progress.wait_for(is_it)).await;
        self.now()
    }

    /// Waits for the end.
    pub(super) async fn over(&mut self) {
        let _ = self.progress.wait_for(Progress::is_over).await;
    }

    pub(super) fn stop(&self) {
        self.control.terminate();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.control.is_terminated()
    }
}

impl Job {
    /// Starts it as a task.
    pub(super) fn start(self) -> Handle {
        let (tell, progress) = watch::channel(Progress::Preparing("its turn".to_owned()));
        let control = Control::new();
        let handle = Handle { port: self.port, progress, control: control.clone() };
        let tasks = self.launcher.tasks.clone();
        tasks.spawn("service job", async move {
            let over = self.run(&tell, &control).await;
            tell.send_replace(over);
        });
        handle
    }

    async fn run(mut self, tell: &watch::Sender<Progress>, control: &Control) -> Progress {
        if let Some(mut predecessor) = self.predecessor.take() {
            let _ = timeout(ENDING_DEADLINE, predecessor.over()).await;
        }
        let launch = match self.prepare(tell, control).await {
            Ok(launch) => launch,
            Err(problem) => {
                tracing::warn!("the service {} is not started: {problem}", self.name);
                return Progress::Failed(problem);
            }
        };
        match Supervised::start(&self.launcher, &launch).await {
            Ok(service) => {
                tracing::info!("Service {} has started (pid: {}, port: {})", self.name, service.pid(), self.port);
                match follow(service, tell, control).await {
                    End::Service(ended) => Progress::Ended(ended),
                    End::FirstProcess { ended, was_open } => {
                        let patience = if was_open { Duration::ZERO } else { daemon::PATIENCE };
                        if daemon::comes(self.port, patience).await {
                            daemon::follow(&self.name, self.port, tell, control).await;
                        }
                        Progress::Ended(ended)
                    }
                }
            }
            Err(error) => {
                let problem = chain(&error);
                tracing::warn!("the service {} is not started: {problem}", self.name);
                Progress::Failed(problem)
            }
        }
    }

    /// Everything before the process; nothing is done when something about the order is wrong.
    async fn prepare(&mut self, tell: &watch::Sender<Progress>, control: &Control) -> Result<Launch, String> {
        check(&self.definition, &self.variables).map_err(|error| chain(&error))?;
        if let Some(directory) = self.directory.clone() {
            let shown = directory.display().to_string();
            tell.send_replace(Progress::Preparing(format!("the folder {shown}")));
            // It may be on a network mount that hangs.
            if !blocking(move || directory.is_dir()).await {
                return Err(format!("model directory does not exist: {shown}"));
            }
        }
        if let Some(holder) = listeners::holder(self.port).await {
            return Err(StartError::PortTaken { port: self.port, holder: holder.to_string() }.to_string());
        }
        let variables = self.act_in_time(tell, control).await?;
        let assembled = assemble(&self.definition, &self.chosen, &variables).map_err(|error| chain(&error))?;
        let mut command = assembled.command();
        if let Some(directory) = &self.directory {
            command = command.in_directory(directory);
        }
        let env = assembled.environment(&self.env, self.own_libraries.as_os_str());
        Ok(Launch { name: self.name.clone(), command, env, port: Some(self.port) })
    }

    async fn act_in_time(&self, tell: &watch::Sender<Progress>, control: &Control) -> Result<Variables, String> {
        let own = Control::new();
        let actions = self.act(tell, &own);
        tokio::pin!(actions);
        let problem = tokio::select! {
            outcome = &mut actions => return outcome,
            () = control.terminated() => "it was stopped before it had started".to_owned(),
            () = sleep(ACTIONS_DEADLINE) => format!("its actions were ended: they took more than {ACTIONS_DEADLINE:?}"),
        };
        own.terminate();
        // A command is given its time to end; a file on a mount that hangs is left behind.
        let _ = timeout(ENDING_DEADLINE, actions).await;
        Err(problem)
    }

    /// Carries out the actions one by one; the variables with their results.
    async fn act(&self, tell: &watch::Sender<Progress>, control: &Control) -> Result<Variables, String> {
        let mut variables = self.variables.clone();
        let workshop = Workshop { launcher: &self.launcher, env: &self.env, control };
        for action in &self.definition.prestart_actions {
            let name = action.act.name();
            tell.send_replace(Progress::Preparing(format!("the action `{name}`")));
            let result = workshop.carry_out(&action.act, &variables).await;
            let value = result.map_err(|error| format!("the action `{name}` failed: {}", chain(&error)))?;
            if let Some(reference) = &action.reference {
                variables.insert(reference.clone(), value);
            }
        }
        Ok(variables)
    }
}

/// What the end of a process is.
enum End {
    Service(Ended),
    /// It may have put itself into the background.
    FirstProcess {
        ended: Ended,
        was_open: bool,
    },
}

/// Stays with a process to its end, telling how far it is.
async fn follow(mut service: Supervised, tell: &watch::Sender<Progress>, control: &Control) -> End {
    tell.send_replace(Progress::Starting);
    let (mut stopping, mut was_open) = (false, false);
    loop {
        tokio::select! {
            phase = service.changed() => match phase {
                Phase::Starting => {}
                Phase::Open => {
                    was_open = true;
                    tell.send_replace(Progress::Open);
                }
                Phase::Ended(ended) if daemon::may_begin(&ended) => return End::FirstProcess { ended, was_open },
                Phase::Ended(ended) => return End::Service(ended),
            },
            () = control.terminated(), if !stopping => {
                stopping = true;
                service.stop();
            }
        }
    }
}
