//! Running a program from its start to its outcome.

use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::command::Command;
use super::control::{Asked, Control};
use super::end_reason::{EndReason, ExplainEnd, PuzzlingEnd};
use super::outcome::{Exit, Outcome};
use super::pump::{Outlets, Pump};
use super::reaper::Reaper;
use super::sink::{OutputSink, Rich, Stream};
use super::spawn::{SpawnError, Spawned, spawn};
use super::tasklog;
use crate::config::ChildEnv;
use crate::tasks::TaskGroup;
use crate::writer::Writer;

/// From SIGTERM to SIGKILL.
const TERM_PATIENCE: Duration = Duration::from_secs(2);

/// From SIGKILL to giving up on a process that the kernel cannot end (uninterruptible sleep).
const KILL_PATIENCE: Duration = Duration::from_secs(1);

/// Between two looks at whether a group has emptied.
const GROUP_POLL: Duration = Duration::from_millis(10);

/// How long a step waits for its task log, which may be on a network mount that hangs.
const TASK_LOG_PATIENCE: Duration = Duration::from_secs(1);

/// What [`Launcher::capture`] keeps of a program's output.
const CAPTURE_BYTES: usize = 64 * 1024;

/// The runner's own output streams, which show everything that programs write.
#[derive(Clone)]
pub struct Console {
    /// Standard output.
    pub stdout: Writer,
    /// Standard error.
    pub stderr: Writer,
}

impl Console {
    /// Our own descriptors 1 and 2.
    ///
    /// # Errors
    /// When a descriptor cannot be duplicated or a thread not be started.
    pub fn of_this_process() -> io::Result<Self> {
        Ok(Self {
            stdout: Writer::to_standard(io::stdout(), "stdout")?,
            stderr: Writer::to_standard(io::stderr(), "stderr")?,
        })
    }
}

/// Starts programs and stays with them.
#[derive(Clone)]
pub struct Launcher {
    /// Collects exit statuses.
    pub reaper: Reaper,
    /// Gets a copy of all output.
    pub console: Console,
    /// Gets all output.
    pub sink: Arc<dyn OutputSink>,
    /// Gets a copy of all output if it exists: `/home/work/.logs`.
    pub logs: Option<PathBuf>,
    /// Where pumps run.
    pub tasks: TaskGroup,
    /// Knows why programs ended.
    pub reasons: Arc<dyn ExplainEnd>,
}

/// How a program ended, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainedEnd {
    /// Its end.
    pub outcome: Outcome,
    /// The reason, where the exit code does not say it.
    pub reason: Option<EndReason>,
}

impl Launcher {
    /// Runs a program and passes its output on; returns when both have come to an end.
    ///
    /// # Errors
    /// When it could not be started.
    pub async fn run(&self, command: &Command, env: &ChildEnv, control: &Control) -> Result<Outcome, SpawnError> {
        Ok(match self.begin(command, env, control).await? {
            ControlFlow::Continue(running) => running.finish(control).await,
            ControlFlow::Break(outcome) => outcome,
        })
    }

    /// The same, and why it ended.
    ///
    /// # Errors
    /// When it could not be started.
    pub async fn run_explained(
        &self,
        command: &Command,
        env: &ChildEnv,
        control: &Control,
    ) -> Result<ExplainedEnd, SpawnError> {
        let running = match self.begin(command, env, control).await? {
            ControlFlow::Continue(running) => running,
            ControlFlow::Break(outcome) => return Ok(ExplainedEnd { outcome, reason: None }),
        };
        let (pid, began) = (running.pid(), running.began());
        let outcome = running.finish(control).await;
        let reason = self.explain(pid, outcome, began.elapsed()).await;
        Ok(ExplainedEnd { outcome, reason })
    }

    /// Starts a program as a step has it, unless its end was demanded already.
    async fn begin(
        &self,
        command: &Command,
        env: &ChildEnv,
        control: &Control,
    ) -> Result<ControlFlow<Outcome, Running>, SpawnError> {
        let task_log = tasklog::open(self.logs.clone(), env).await;
        match forestalled(control) {
            Some(outcome) => Ok(ControlFlow::Break(outcome)),
            None => self.start(command, env, control, task_log).map(ControlFlow::Continue),
        }
    }

    /// Why a program that ran for so long ended, where its exit code does not say.
    pub async fn explain(&self, pid: Pid, outcome: Outcome, ran_for: Duration) -> Option<EndReason> {
        let Outcome::Ended(exit) = outcome else { return None };
        self.reasons.explain(pid, PuzzlingEnd::of(exit)?, ran_for).await
    }

    /// Starts a program; its output is passed on from now on. What is returned is to be finished by whoever has it.
    ///
    /// # Errors
    /// When it could not be started.
    pub fn start(
        &self,
        command: &Command,
        env: &ChildEnv,
        control: &Control,
        task_log: Writer,
    ) -> Result<Running, SpawnError> {
        tracing::debug!("running: {command}");
        let Spawned { pid, stdout, stderr, exit } = spawn(&self.reaper, command, env)?;
        let outlets = |console: &Writer| Outlets {
            console: console.clone(),
            task_log: task_log.clone(),
            sink: Arc::clone(&self.sink),
        };
        let (stdout, settle_stdout) = Pump::new(Stream::Stdout, stdout, outlets(&self.console.stdout));
        let (stderr, settle_stderr) = Pump::new(Stream::Stderr, stderr, outlets(&self.console.stderr));
        control.set_pumps(vec![settle_stdout, settle_stderr]);
        Ok(Running {
            pid,
            began: Instant::now(),
            exit,
            stdout: self.start_pump(stdout),
            stderr: self.start_pump(stderr),
            task_log,
        })
    }

    /// Runs a helper program of ours and returns what it wrote to stdout.
    ///
    /// # Errors
    /// A sentence for the log when it does not start, fails (with its stderr), has not ended at the
    /// deadline, or `control` is told to end.
    pub async fn capture(
        &self,
        command: &Command,
        env: &ChildEnv,
        control: &Control,
        deadline: Duration,
    ) -> Result<Vec<u8>, String> {
        let own = Control::new();
        let collect = self.collect(command, env, &own, CAPTURE_BYTES);
        tokio::pin!(collect);
        let collected = tokio::select! {
            collected = &mut collect => collected,
            () = either(control.terminated(), sleep(deadline)) => {
                own.terminate();
                collect.await.map(|collected| Collected { outcome: Outcome::NotStarted, ..collected })
            }
        };
        match collected {
            Ok(Collected { outcome: Outcome::Ended(Exit::Code(0)), stdout, .. }) => Ok(stdout),
            Ok(Collected { outcome: Outcome::Ended(exit), stderr, .. }) => {
                Err(format!("`{command}` failed with {}: {}", exit.code(), String::from_utf8_lossy(&stderr).trim_end()))
            }
            Ok(_) => Err(format!("`{command}` was ended: the runner stops, or it took more than {deadline:?}")),
            Err(error) => Err(crate::error::chain(&error)),
        }
    }

    /// Runs a helper program as a part of a step: nobody sees what it writes but the caller. Of each stream
    /// at most `limit_bytes` are kept; the rest is read and thrown away.
    ///
    /// # Errors
    /// When it could not be started.
    pub async fn collect(
        &self,
        command: &Command,
        env: &ChildEnv,
        control: &Control,
        limit_bytes: usize,
    ) -> Result<Collected, SpawnError> {
        let captured = Arc::new(Captured { limit_bytes, stdout: Mutex::default(), stderr: Mutex::default() });
        let quiet = Self {
            console: Console { stdout: Writer::discard(), stderr: Writer::discard() },
            sink: Arc::clone(&captured) as Arc<dyn OutputSink>,
            logs: None,
            ..self.clone()
        };
        let outcome = quiet.run(command, env, control).await?;
        let take = |kept: &Mutex<Vec<u8>>| std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Collected { outcome, stdout: take(&captured.stdout), stderr: take(&captured.stderr) })
    }

    fn start_pump(&self, pump: Pump) -> RunningPump {
        let (tell_exit, exited) = oneshot::channel();
        let (tell_done, done) = oneshot::channel();
        self.tasks.spawn("pump", pump.run(exited, tell_done));
        RunningPump { tell_exit, done }
    }
}

/// What comes of a program that was not to start any more.
fn forestalled(control: &Control) -> Option<Outcome> {
    let demand = *control.demands().borrow();
    if demand.terminate {
        Some(Outcome::CutShort(Exit::Signal(nix::libc::SIGTERM)))
    } else if demand.interrupts > 0 {
        Some(Outcome::NotStarted)
    } else {
        None
    }
}

/// A program that was started.
pub struct Running {
    pid: Pid,
    began: Instant,
    exit: oneshot::Receiver<Exit>,
    stdout: RunningPump,
    stderr: RunningPump,
    task_log: Writer,
}

impl Running {
    /// Leader of its process group.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// When it was started.
    #[must_use]
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Stays with it until it has ended and the last of its output is passed on.
    pub async fn finish(self, control: &Control) -> Outcome {
        let outcome = supervise(self.pid, self.exit, control).await;
        tokio::join!(self.stdout.finish(), self.stderr.finish());
        // The next program's log has a writer of its own, which must not overtake this one.
        if !self.task_log.flush(TASK_LOG_PATIENCE).await {
            tracing::warn!("the task log is slow; what follows may be out of order in it");
        }
        outcome
    }
}

struct RunningPump {
    tell_exit: oneshot::Sender<()>,
    done: oneshot::Receiver<()>,
}

impl RunningPump {
    /// Tells the pump that its program has exited, and waits for the last of its output. The pump
    /// says that it is done by dropping its end.
    async fn finish(self) {
        let _ = self.tell_exit.send(());
        let _ = self.done.await;
    }
}

async fn either(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    tokio::select! {
        () = one => {}
        () = other => {}
    }
}

/// Waits for the exit, passing on signals meanwhile.
async fn supervise(pid: Pid, mut exit: oneshot::Receiver<Exit>, control: &Control) -> Outcome {
    let (mut asks, mut pauses) = (control.asks(), control.pauses());
    loop {
        let asked = tokio::select! {
            exit = &mut exit => return Outcome::Ended(exit.unwrap_or(Exit::Signal(nix::libc::SIGKILL))),
            asked = asks.next() => asked,
            Ok(()) = pauses.changed() => {
                let paused = *pauses.borrow_and_update();
                let _ = killpg(pid, if paused { Signal::SIGSTOP } else { Signal::SIGCONT });
                continue;
            }
        };
        match asked {
            Asked::Interrupt => _ = killpg(pid, Signal::SIGINT),
            Asked::Terminate => {
                if control.is_paused() {
                    // SIGTERM waits for it.
                    let _ = killpg(pid, Signal::SIGCONT);
                }
                return Outcome::CutShort(end_group(pid, exit).await);
            }
        }
    }
}

/// TERM, patience, KILL: for the whole group, also when its leader goes first.
async fn end_group(pid: Pid, exit: oneshot::Receiver<Exit>) -> Exit {
    let _ = killpg(pid, Signal::SIGTERM);
    let kill_at = Instant::now() + TERM_PATIENCE;
    tokio::pin!(exit);
    let leader = timeout_at(kill_at, &mut exit).await;
    // The group keeps its number from being reused for as long as it has members.
    while killpg(pid, None).is_ok() && Instant::now() < kill_at {
        sleep(GROUP_POLL).await;
    }
    if killpg(pid, None).is_ok() {
        let _ = killpg(pid, Signal::SIGKILL);
    }
    let exit = match leader {
        Ok(exit) => exit,
        Err(_) => timeout(KILL_PATIENCE, exit).await.unwrap_or_else(|_| {
            tracing::warn!("process {pid} does not die of SIGKILL; it is left alone");
            Ok(Exit::Signal(nix::libc::SIGKILL))
        }),
    };
    exit.unwrap_or(Exit::Signal(nix::libc::SIGKILL))
}

/// What a program wrote, and how it ended.
#[derive(Debug)]
pub struct Collected {
    /// Its end.
    pub outcome: Outcome,
    /// The beginning of its standard output.
    pub stdout: Vec<u8>,
    /// The beginning of its standard error.
    pub stderr: Vec<u8>,
}

/// Output kept in memory, up to `limit_bytes` of each stream.
struct Captured {
    limit_bytes: usize,
    stdout: Mutex<Vec<u8>>,
    stderr: Mutex<Vec<u8>>,
}

#[async_trait]
impl OutputSink for Captured {
    async fn deliver(&self, stream: Stream, chunk: Bytes) {
        let kept = match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        };
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let room = self.limit_bytes.saturating_sub(kept.len());
        kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
    }

    /// Programs only write.
    async fn show(&self, _: Rich) {}
}
