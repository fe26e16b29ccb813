//! One service's process: started in a group of its own, watched until its port opens, ended with its group.
//!
//! ```text
//!             port has a listener
//! Starting ───────────────────────▶ Open
//!     │  exit                        │  exit
//!     └────────────▶ Ended ◀─────────┘
//! ```
//!
//! Somebody else may end up listening on the port; whose listener it is does not matter, as in the agent's eyes.
//! Output goes to the runner's own stdout and stderr, as if inherited, and its last lines are kept for [`Ended`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Pid;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use super::last_lines::LastLines;
use super::listeners;
use crate::config::ChildEnv;
use crate::process::{Command, Control, Launcher, Outcome, Running, SpawnError};
use crate::writer::Writer;

/// Between two looks at the port while somebody is likely to wait for it.
const EAGER_POLL: Duration = Duration::from_millis(50);

/// How long that is.
const EAGER_FOR: Duration = Duration::from_secs(15);

/// The same afterwards.
const PATIENT_POLL: Duration = Duration::from_millis(500);

/// What to start.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The service's name.
    pub name: String,
    /// Its program, and where it runs.
    pub command: Command,
    /// Its whole environment.
    pub env: ChildEnv,
    /// The TCP port that it is going to listen on; without one it counts as open when it runs.
    pub port: Option<u16>,
}

/// How a service ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit.
    pub outcome: Outcome,
    /// Why, where the exit code does not say it.
    pub reason: Option<String>,
    /// The last that it wrote.
    pub last_lines: String,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it has ended with exit code {}", self.outcome.code())?;
        if let Some(reason) = &self.reason {
            write!(f, " ({reason})")?;
        }
        if self.last_lines.is_empty() {
            f.write_str("; it wrote nothing")
        } else {
            write!(f, "; its last words:\n{}", self.last_lines)
        }
    }
}

/// Why a service does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port has a listener before the service was started.
    #[error("port {port} is taken already by {holder}")]
    PortTaken {
        /// The service's port.
        port: u16,
        /// Who has it.
        holder: String,
    },
    /// The program cannot be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
}

/// Where a service is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// It runs; its port has not opened.
    Starting,
    /// Its port was seen open.
    Open,
    /// It does not run any more.
    Ended(Ended),
}

/// The handle on one process that was started. Clones are handles on the same.
#[derive(Clone)]
pub struct Supervised {
    pid: Pid,
    control: Control,
    phase: watch::Receiver<Phase>,
}

impl Supervised {
    /// Starts a process and a task that stays with it.
    ///
    /// # Errors
    /// When it could not be started; also when its port is taken, which would pass for its own.
    pub async fn start(launcher: &Launcher, launch: &Launch) -> Result<Self, StartError> {
        if let Some(port) = launch.port
            && let Some(holder) = listeners::holder(port).await
        {
            return Err(StartError::PortTaken { port, holder: holder.to_string() });
        }
        let lines = Arc::new(LastLines::default());
        let launcher = Launcher { sink: lines.clone(), logs: None, ..launcher.clone() };
        let control = Control::new();
        let running = launcher.start(&launch.command, &launch.env, &control, Writer::discard())?;
        let (tell_phase, phase) = watch::channel(Phase::Starting);
        let service = Self { pid: running.pid(), control: control.clone(), phase };
        let tasks = launcher.tasks.clone();
        let life = Life { name: launch.name.clone(), port: launch.port, control, lines, launcher, phase: tell_phase };
        tasks.spawn("service", life.live(running));
        Ok(service)
    }

    /// The leader of its process group.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Where it is now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// Waits until its port is open or it has ended; [`Phase::Starting`] at the deadline.
    pub async fn settled(&mut self, deadline: Instant) -> Phase {
        let settled = self.phase.wait_for(|phase| *phase != Phase::Starting);
        // At the deadline, or without anybody who would say more, it is what was said last.
        let _ = timeout_at(deadline, settled).await;
        self.phase()
    }

    /// Waits for the next phase.
    pub async fn changed(&mut self) -> Phase {
        match self.phase.changed().await {
            Ok(()) => self.phase.borrow_and_update().clone(),
            // Its task is gone, with all others.
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits until it does not run any more.
    pub async fn ended(&mut self) -> Ended {
        let told = self.phase.wait_for(|phase| matches!(phase, Phase::Ended(_))).await.map(|phase| phase.clone());
        match told {
            Ok(Phase::Ended(ended)) => ended,
            _ => std::future::pending().await,
        }
    }

    /// Ends its process group: SIGTERM, and SIGKILL after two seconds. See [`Self::ended`] for when that is through.
    pub fn stop(&self) {
        self.control.terminate();
    }
}

/// What the task owns.
struct Life {
    name: String,
    port: Option<u16>,
    control: Control,
    lines: Arc<LastLines>,
    launcher: Launcher,
    phase: watch::Sender<Phase>,
}

impl Life {
    async fn live(self, running: Running) {
        let opening = async {
            self.await_port().await;
            self.phase.send_replace(Phase::Open);
            std::future::pending().await
        };
        let (pid, began) = (running.pid(), running.began());
        let outcome = tokio::select! {
            biased;
            outcome = running.finish(&self.control) => outcome,
            never = opening => never,
        };
        let reason = self.launcher.explain(pid, outcome, began.elapsed()).await.map(|reason| reason.text);
        let ended = Ended { outcome, reason, last_lines: self.lines.text() };
        match outcome {
            Outcome::CutShort(_) | Outcome::NotStarted => tracing::info!("the service {} was ended", self.name),
            Outcome::Ended(_) => tracing::info!("the service {}: {ended}", self.name),
        }
        self.phase.send_replace(Phase::Ended(ended));
    }

    async fn await_port(&self) {
        let Some(port) = self.port else { return };
        let begun = Instant::now();
        while !listeners::is_open(port).await {
            sleep(if begun.elapsed() < EAGER_FOR { EAGER_POLL } else { PATIENT_POLL }).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Console, Exit, OomRank, Reaper, Unexplained};
    use crate::tasks::TaskGroup;
    use std::collections::BTreeMap;
    use std::net::TcpListener;

    fn world() -> Launcher {
        let tasks = TaskGroup::new();
        Launcher {
            reaper: Reaper::start(&tasks, Box::new(|_, _| ()), OomRank::Unchanged).unwrap(),
            console: Console { stdout: Writer::discard(), stderr: Writer::discard() },
            sink: Arc::new(LastLines::default()),
            logs: None,
            tasks,
            reasons: Arc::new(Unexplained),
        }
    }

    fn launch(line: &str, port: Option<u16>) -> Launch {
        Launch { name: "s".into(), command: Command::shell(line), env: BTreeMap::new(), port }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    /// One reaper takes the children of the whole process: one test has all that starts any.
    #[tokio::test]
    async fn a_process_is_followed_from_start_to_end() {
        let launcher = world();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let sleeping = launch("exec sleep 1000", Some(port));

        let Err(error) = Supervised::start(&launcher, &sleeping).await else { panic!() };
        let us = format!("(process {})", std::process::id());
        let message = error.to_string();
        assert!(
            message.starts_with(&format!("port {port} is taken already by ")) && message.ends_with(&us),
            "{message}"
        );
        drop(listener);

        let mut service = Supervised::start(&launcher, &sleeping).await.unwrap();
        let deadline = Instant::now() + 3 * EAGER_POLL;
        assert_eq!(service.settled(deadline).await, Phase::Starting);
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        assert_eq!(service.settled(soon()).await, Phase::Open);
        service.stop();
        assert_eq!(service.ended().await.outcome, Outcome::CutShort(Exit::Signal(15)));
        drop(listener);

        let failing = launch("echo starting; echo no such module >&2; exit 3", Some(port));
        let mut service = Supervised::start(&launcher, &failing).await.unwrap();
        let Phase::Ended(ended) = service.settled(soon()).await else { panic!() };
        assert_eq!(ended.to_string(), "it has ended with exit code 3; its last words:\nno such module");

        let missing = Launch { command: Command::argv(["/nowhere/x"]), ..launch("", None) };
        let error = Supervised::start(&launcher, &missing).await.err();
        assert!(matches!(error, Some(StartError::Spawn(SpawnError::NotFound(_)))));
        let elsewhere = Launch { command: Command::argv(["/bin/true"]).in_directory("/nowhere"), ..launch("", None) };
        let error = Supervised::start(&launcher, &elsewhere).await.err();
        assert!(matches!(error, Some(StartError::Spawn(SpawnError::NoFolder(_)))));
    }
}
