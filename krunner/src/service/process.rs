//! The process of a service: started in its own process group, watched until its port opens, stopped with its group.
//!
//! ```text
//!             port has a listener
//! Starting ───────────────────────▶ Listening
//!     │  exit                        │  exit
//!     └────────────▶ Exited ◀─────────┘
//! ```
//!
//! Any listener on the port counts, because the agent cannot tell them apart either. Output goes to the runner's own stdout and
//! stderr, as if inherited, and its last lines are kept for [`ServiceExit`].

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Pid;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use super::last_lines::LastLines;
use super::listeners;
use crate::config::ChildEnv;
use crate::process::{Command, CommandOutcome, Control, Launcher, RunningChild, SpawnError};

/// Polling interval of the port right after the start: sshd listens within milliseconds, and the session's first `status`
/// waits for it.
const FIRST_POLL: Duration = Duration::from_millis(10);

/// How long [`FIRST_POLL`] is used.
const FIRST_FOR: Duration = Duration::from_secs(1);

/// Polling interval while a response is likely to wait for the port.
const EAGER_POLL: Duration = Duration::from_millis(50);

/// How long after the start [`EAGER_POLL`] is used.
const EAGER_FOR: Duration = Duration::from_secs(15);

/// Polling interval afterwards.
const PATIENT_POLL: Duration = Duration::from_millis(500);

/// How to start a service.
#[derive(Debug, Clone)]
pub(crate) struct ServiceLaunch {
    /// The service's name.
    pub name: String,
    /// The command and its working directory.
    pub command: Command,
    /// The complete environment.
    pub env: ChildEnv,
    /// The TCP port that the service listens on. Without one the service is ready as soon as it runs.
    pub port: Option<u16>,
}

/// How a service exited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceExit {
    /// The exit status.
    pub outcome: CommandOutcome,
    /// The cause, if more is known than the exit code.
    pub reason: Option<String>,
    /// The last lines of its output.
    pub last_lines: String,
}

impl fmt::Display for ServiceExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exited with code {}", self.outcome.code())?;
        if let Some(reason) = &self.reason {
            write!(f, " ({reason})")?;
        }
        if self.last_lines.is_empty() {
            f.write_str("; no output")
        } else {
            write!(f, "; last output:\n{}", self.last_lines)
        }
    }
}

/// Why a service could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServiceStartError {
    /// The port already has a listener.
    #[error("port {port} is already in use by {owner}")]
    PortTaken {
        /// The service's port.
        port: u16,
        /// The listening process, for the message.
        owner: String,
    },
    /// The program cannot be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The service was stopped before its program had started.
    #[error("stopped before it started")]
    Stopped,
}

/// The phase of a service's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProcessPhase {
    /// It runs, and its port is not open yet.
    Starting,
    /// Its port was seen open.
    Listening,
    /// The process exited.
    Exited(ServiceExit),
}

/// A handle on a started process. Clones refer to the same process.
#[derive(Clone)]
pub(crate) struct ServiceProcess {
    pid: Pid,
    phase: watch::Receiver<ProcessPhase>,
}

impl ServiceProcess {
    /// Starts a process and a task that watches it. The process is stopped by `control`, also while it starts.
    ///
    /// # Errors
    /// When the process cannot be started, or its port already has a listener, which would be mistaken for it.
    pub(crate) async fn start(
        launcher: &Launcher,
        launch: &ServiceLaunch,
        control: &Control,
    ) -> Result<Self, ServiceStartError> {
        if let Some(port) = launch.port
            && let Some(owner) = listeners::port_owner(port).await
        {
            return Err(ServiceStartError::PortTaken { port, owner: owner.to_string() });
        }
        let lines = Arc::new(LastLines::default());
        let launcher = Launcher { sink: lines.clone(), logs: None, ..launcher.clone() };
        let control = control.clone();
        let started = launcher.start(&launch.command, &launch.env, &control).await?;
        let ControlFlow::Continue(running) = started else { return Err(ServiceStartError::Stopped) };
        let (phase_sender, phase) = watch::channel(ProcessPhase::Starting);
        let service = Self { pid: running.pid(), phase };
        let tasks = launcher.tasks.clone();
        let task =
            ProcessTask { name: launch.name.clone(), port: launch.port, control, lines, launcher, phase: phase_sender };
        tasks.spawn("service", task.run(running));
        Ok(service)
    }

    /// The pid, which is also the process group.
    #[must_use]
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// The current phase.
    #[must_use]
    pub(crate) fn phase(&self) -> ProcessPhase {
        self.phase.borrow().clone()
    }

    /// Waits until the port is open or the process exited; [`ProcessPhase::Starting`] at the deadline.
    pub(crate) async fn settled(&mut self, deadline: Instant) -> ProcessPhase {
        let settled = self.phase.wait_for(|phase| *phase != ProcessPhase::Starting);
        // At the deadline, or if the task is gone, the last phase counts.
        let _ = timeout_at(deadline, settled).await;
        self.phase()
    }

    /// Waits for the next phase.
    pub(crate) async fn changed(&mut self) -> ProcessPhase {
        match self.phase.changed().await {
            Ok(()) => self.phase.borrow_and_update().clone(),
            // The task was cancelled, with all others.
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits until the process exited.
    pub(crate) async fn ended(&mut self) -> ServiceExit {
        let told =
            self.phase.wait_for(|phase| matches!(phase, ProcessPhase::Exited(_))).await.map(|phase| phase.clone());
        match told {
            Ok(ProcessPhase::Exited(ended)) => ended,
            _ => std::future::pending().await,
        }
    }
}

/// The state of the task that watches the process.
struct ProcessTask {
    name: String,
    port: Option<u16>,
    control: Control,
    lines: Arc<LastLines>,
    launcher: Launcher,
    phase: watch::Sender<ProcessPhase>,
}

impl ProcessTask {
    async fn run(self, running: RunningChild) {
        let opening = async {
            self.wait_for_port().await;
            self.phase.send_replace(ProcessPhase::Listening);
            std::future::pending().await
        };
        let (pid, began) = (running.pid(), running.began());
        let outcome = tokio::select! {
            biased;
            outcome = running.finish(&self.control) => outcome,
            never = opening => never,
        };
        let reason = self.launcher.explain(pid, outcome, began.elapsed()).await.map(|reason| reason.text);
        let ended = ServiceExit { outcome, reason, last_lines: self.lines.text() };
        match outcome {
            CommandOutcome::Terminated(_) | CommandOutcome::NotStarted => {
                tracing::info!("service {} was stopped", self.name);
            }
            CommandOutcome::Exited(_) => tracing::info!("service {} {ended}", self.name),
        }
        self.phase.send_replace(ProcessPhase::Exited(ended));
    }

    async fn wait_for_port(&self) {
        let Some(port) = self.port else { return };
        let begun = Instant::now();
        while !listeners::is_open(port).await {
            sleep(poll_after(begun.elapsed())).await;
        }
    }
}

fn poll_after(elapsed: Duration) -> Duration {
    match elapsed {
        elapsed if elapsed < FIRST_FOR => FIRST_POLL,
        elapsed if elapsed < EAGER_FOR => EAGER_POLL,
        _ => PATIENT_POLL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{ChildStatus, Console, NoExplanation, OomScorePolicy, Reaper};
    use crate::tasks::TaskGroup;
    use crate::writer::Writer;
    use std::collections::BTreeMap;
    use std::net::TcpListener;

    fn world() -> Launcher {
        let tasks = TaskGroup::new();
        Launcher {
            reaper: Reaper::start(&tasks, Box::new(|_, _| ()), OomScorePolicy::Unchanged).unwrap(),
            console: Console { stdout: Writer::discard(), stderr: Writer::discard() },
            sink: Arc::new(LastLines::default()),
            logs: None,
            tasks,
            reasons: Arc::new(NoExplanation),
        }
    }

    fn launch(line: &str, port: Option<u16>) -> ServiceLaunch {
        ServiceLaunch { name: "s".into(), command: Command::shell(line), env: BTreeMap::new(), port }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    /// One test for everything that starts processes, because a reaper takes all children of this process.
    #[tokio::test]
    async fn a_process_is_followed_from_start_to_end() {
        let launcher = world();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let sleeping = launch("exec sleep 1000", Some(port));

        let Err(error) = ServiceProcess::start(&launcher, &sleeping, &Control::new()).await else { panic!() };
        let us = format!("(process {})", std::process::id());
        let message = error.to_string();
        assert!(
            message.starts_with(&format!("port {port} is already in use by ")) && message.ends_with(&us),
            "{message}"
        );
        drop(listener);

        let control = Control::new();
        let mut service = ServiceProcess::start(&launcher, &sleeping, &control).await.unwrap();
        let deadline = Instant::now() + 3 * EAGER_POLL;
        assert_eq!(service.settled(deadline).await, ProcessPhase::Starting);
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        assert_eq!(service.settled(soon()).await, ProcessPhase::Listening);
        control.terminate();
        assert_eq!(service.ended().await.outcome, CommandOutcome::Terminated(ChildStatus::Signal(15)));
        drop(listener);

        let failing = launch("echo starting; echo no such module >&2; exit 3", Some(port));
        let mut service = ServiceProcess::start(&launcher, &failing, &Control::new()).await.unwrap();
        let ProcessPhase::Exited(ended) = service.settled(soon()).await else { panic!() };
        assert_eq!(ended.to_string(), "exited with code 3; last output:\nno such module");

        let missing = ServiceLaunch { command: Command::argv(["/nowhere/x"]), ..launch("", None) };
        let error = ServiceProcess::start(&launcher, &missing, &Control::new()).await.err();
        assert!(matches!(error, Some(ServiceStartError::Spawn(SpawnError::NotFound(_)))));
        let elsewhere =
            ServiceLaunch { command: Command::argv(["/bin/true"]).in_directory("/nowhere"), ..launch("", None) };
        let error = ServiceProcess::start(&launcher, &elsewhere, &Control::new()).await.err();
        assert!(matches!(error, Some(ServiceStartError::Spawn(SpawnError::NoFolder(_)))));
    }
}
