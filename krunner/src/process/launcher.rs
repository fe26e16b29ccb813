//! Runs a program from start to outcome.

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
use super::control::{Control, ControlRequest};
use super::exit_reason::{ExitExplainer, ExitReason, UnexplainedExit};
use super::outcome::{ChildStatus, CommandOutcome};
use super::pump::{Pump, Sinks};
use super::reaper::Reaper;
use super::sink::{OutputSink, RichOutput};
use super::spawn::{SpawnError, SpawnedChild, signal_group, spawn};
use super::tasklog;
use crate::config::ChildEnv;
use crate::tasks::TaskGroup;
use crate::wire::Stream;
use crate::writer::Writer;

/// Time from SIGTERM to SIGKILL.
const TERM_TIMEOUT: Duration = Duration::from_secs(2);

/// Time after SIGKILL until a process is given up (uninterruptible sleep).
const KILL_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a program that was interrupted or terminated before it started may still start.
const START_TIMEOUT: Duration = Duration::from_secs(1);

/// How often to check whether a process group is empty.
const GROUP_POLL: Duration = Duration::from_millis(10);

/// How long a step waits for its task log, which may be on a hung network mount.
const TASK_LOG_TIMEOUT: Duration = Duration::from_secs(1);

/// How much output [`Launcher::capture`] keeps.
const MAX_CAPTURED_BYTES: usize = 64 * 1024;

/// The runner's own output streams, which receive a copy of all program output.
#[derive(Clone)]
pub(crate) struct Console {
    /// Writer of our standard output.
    pub stdout: Writer,
    /// Writer of our standard error.
    pub stderr: Writer,
}

impl Console {
    /// Writers to our own descriptors 1 and 2.
    ///
    /// # Errors
    /// If a descriptor cannot be duplicated or a thread cannot be started.
    pub(crate) fn of_this_process() -> io::Result<Self> {
        Ok(Self {
            stdout: Writer::to_standard(io::stdout(), "stdout")?,
            stderr: Writer::to_standard(io::stderr(), "stderr")?,
        })
    }
}

/// Starts programs and supervises them.
#[derive(Clone)]
pub(crate) struct Launcher {
    /// Spawns children and collects their exit statuses.
    pub reaper: Reaper,
    /// Receives a copy of all output.
    pub console: Console,
    /// Receives all output.
    pub sink: Arc<dyn OutputSink>,
    /// The folder of task logs, which receive a copy of all output; used if it exists.
    pub logs: Option<PathBuf>,
    /// The task group of the pumps.
    pub tasks: TaskGroup,
    /// Explains exits that an exit code does not explain.
    pub reasons: Arc<dyn ExitExplainer>,
}

/// The outcome of a program, and the reason for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExplainedOutcome {
    /// How the program exited.
    pub outcome: CommandOutcome,
    /// The reason, if the exit code does not tell.
    pub reason: Option<ExitReason>,
}

/// Why a helper program has no usable output.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaptureError {
    /// It did not start.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// It exited with an error.
    #[error("`{command}` failed with {code}: {stderr}")]
    Failed {
        /// The command line.
        command: String,
        /// Its exit code, negative for a signal.
        code: i32,
        /// The start of its standard error.
        stderr: String,
    },
    /// It was terminated.
    #[error("`{command}` was terminated: it exceeded {deadline:?}, or the runner is shutting down")]
    Terminated {
        /// The command line.
        command: String,
        /// The time that it was given.
        deadline: Duration,
    },
}

impl Launcher {
    /// Runs a program and forwards its output; returns when the program has exited and its output is forwarded.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) async fn run(
        &self,
        command: &Command,
        env: &ChildEnv,
        control: &Control,
    ) -> Result<CommandOutcome, SpawnError> {
        Ok(match self.begin(command, env, control).await? {
            ControlFlow::Continue(running) => running.finish(control).await,
            ControlFlow::Break(outcome) => outcome,
        })
    }

    /// Like [`Self::run`], with the reason for the exit.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) async fn run_explained(
        &self,
        command: &Command,
        env: &ChildEnv,
        control: &Control,
    ) -> Result<ExplainedOutcome, SpawnError> {
        let running = match self.begin(command, env, control).await? {
            ControlFlow::Continue(running) => running,
            ControlFlow::Break(outcome) => return Ok(ExplainedOutcome { outcome, reason: None }),
        };
        let (pid, began) = (running.pid(), running.began());
        let outcome = running.finish(control).await;
        let reason = self.explain(pid, outcome, began.elapsed()).await;
        Ok(ExplainedOutcome { outcome, reason })
    }

    /// Starts a program with a task log, unless `control` was interrupted or terminated before.
    async fn begin(
        &self,
        command: &Command,
        env: &ChildEnv,
        control: &Control,
    ) -> Result<ControlFlow<CommandOutcome, RunningChild>, SpawnError> {
        let starting = async {
            let task_log = tasklog::open(self.logs.clone(), env).await;
            match stopped_before_start(control) {
                Some(outcome) => Ok(ControlFlow::Break(outcome)),
                None => self.start_now(command, env, control, task_log).await.map(ControlFlow::Continue),
            }
        };
        unless_stopped(command, control, starting).await
    }

    /// Explains the exit of a program that ran for `ran_for`, if its exit code does not.
    pub(crate) async fn explain(&self, pid: Pid, outcome: CommandOutcome, ran_for: Duration) -> Option<ExitReason> {
        let CommandOutcome::Exited(exit) = outcome else { return None };
        self.reasons.explain(pid, UnexplainedExit::of(exit)?, ran_for).await
    }

    /// Starts a program without a task log. The caller must call [`RunningChild::finish`]. If the program does not start
    /// within [`START_TIMEOUT`] of a request to interrupt or terminate it, returns the outcome.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) async fn start(
        &self,
        command: &Command,
        env: &ChildEnv,
        control: &Control,
    ) -> Result<ControlFlow<CommandOutcome, RunningChild>, SpawnError> {
        let starting = self.start_now(command, env, control, Writer::discard());
        unless_stopped(command, control, async { starting.await.map(ControlFlow::Continue) }).await
    }

    async fn start_now(
        &self,
        command: &Command,
        env: &ChildEnv,
        control: &Control,
        task_log: Writer,
    ) -> Result<RunningChild, SpawnError> {
        tracing::debug!("running: {command}");
        let SpawnedChild { pid, stdout, stderr, exit } = spawn(&self.reaper, command, env).await?;
        let sinks = |console: &Writer| Sinks {
            console: console.clone(),
            task_log: task_log.clone(),
            sink: Arc::clone(&self.sink),
        };
        let (stdout, flush_stdout) = Pump::new(Stream::Stdout, stdout, sinks(&self.console.stdout));
        let (stderr, flush_stderr) = Pump::new(Stream::Stderr, stderr, sinks(&self.console.stderr));
        control.set_pumps(vec![flush_stdout, flush_stderr]);
        Ok(RunningChild {
            pid,
            began: Instant::now(),
            exit,
            stdout: self.start_pump(stdout),
            stderr: self.start_pump(stderr),
            task_log,
        })
    }

    /// Runs one of our helper programs and returns its stdout.
    ///
    /// # Errors
    /// If it does not start, fails (with its stderr), exceeds the deadline, or `control` is terminated.
    pub(crate) async fn capture(
        &self,
        command: &Command,
        env: &ChildEnv,
        control: &Control,
        deadline: Duration,
    ) -> Result<Vec<u8>, CaptureError> {
        let own = Control::new();
        let collect = self.collect(command, env, &own, MAX_CAPTURED_BYTES);
        tokio::pin!(collect);
        let collected = tokio::select! {
            collected = &mut collect => collected,
            () = either(control.terminated(), sleep(deadline)) => {
                own.terminate();
                collect.await.map(|collected| CollectedOutput { outcome: CommandOutcome::NotStarted, ..collected })
            }
        };
        match collected? {
            CollectedOutput { outcome: CommandOutcome::Exited(ChildStatus::Code(0)), stdout, .. } => Ok(stdout),
            CollectedOutput { outcome: CommandOutcome::Exited(exit), stderr, .. } => {
                let stderr = String::from_utf8_lossy(&stderr).trim_end().to_owned();
                Err(CaptureError::Failed { command: command.to_string(), code: exit.code(), stderr })
            }
            _ => Err(CaptureError::Terminated { command: command.to_string(), deadline }),
        }
    }

    /// Runs a helper program as part of a step; only the caller sees its output. Keeps at most `limit_bytes` of each
    /// stream and discards the rest.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) async fn collect(
        &self,
        command: &Command,
        env: &ChildEnv,
        control: &Control,
        limit_bytes: usize,
    ) -> Result<CollectedOutput, SpawnError> {
        let captured = Arc::new(OutputBuffer { limit_bytes, stdout: Mutex::default(), stderr: Mutex::default() });
        let quiet = Self {
            console: Console { stdout: Writer::discard(), stderr: Writer::discard() },
            sink: Arc::clone(&captured) as Arc<dyn OutputSink>,
            logs: None,
            ..self.clone()
        };
        let outcome = quiet.run(command, env, control).await?;
        let take = |kept: &Mutex<Vec<u8>>| std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(CollectedOutput { outcome, stdout: take(&captured.stdout), stderr: take(&captured.stderr) })
    }

    fn start_pump(&self, pump: Pump) -> RunningPump {
        let (exited_tx, exited) = oneshot::channel();
        let (done_tx, done) = oneshot::channel();
        self.tasks.spawn("pump", pump.run(exited, done_tx));
        RunningPump { exited_tx, done }
    }
}

/// Waits until the program started, at most [`START_TIMEOUT`] after a request to interrupt or terminate it.
async fn unless_stopped(
    command: &Command,
    control: &Control,
    starting: impl Future<Output = Result<ControlFlow<CommandOutcome, RunningChild>, SpawnError>>,
) -> Result<ControlFlow<CommandOutcome, RunningChild>, SpawnError> {
    until_stopped(control, starting).await.unwrap_or_else(|outcome| {
        tracing::warn!("`{command}` has not started; it or its log may be on a mount that hangs");
        Ok(ControlFlow::Break(outcome))
    })
}

/// Waits for work of a step that may hang in the kernel, at most [`START_TIMEOUT`] after a request to interrupt or terminate
/// the step. The work itself is dropped then.
///
/// # Errors
/// The outcome of a step that was stopped before its program started.
pub(crate) async fn until_stopped<T>(control: &Control, work: impl Future<Output = T>) -> Result<T, CommandOutcome> {
    let stopped = async {
        control.requests().next().await;
        sleep(START_TIMEOUT).await;
    };
    tokio::select! {
        biased;
        done = work => Ok(done),
        () = stopped => Err(stopped_before_start(control).unwrap_or(CommandOutcome::NotStarted)),
    }
}

/// The outcome of a program whose step was interrupted or terminated before it started.
fn stopped_before_start(control: &Control) -> Option<CommandOutcome> {
    let state = *control.watch().borrow();
    if state.terminate {
        Some(CommandOutcome::Terminated(ChildStatus::Signal(nix::libc::SIGTERM)))
    } else if state.interrupts > 0 {
        Some(CommandOutcome::NotStarted)
    } else {
        None
    }
}

/// A running child process.
pub(crate) struct RunningChild {
    pid: Pid,
    began: Instant,
    exit: oneshot::Receiver<ChildStatus>,
    stdout: RunningPump,
    stderr: RunningPump,
    task_log: Writer,
}

impl RunningChild {
    /// The child's pid, which is also its process group.
    #[must_use]
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// When the child was started.
    #[must_use]
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Waits until the child has exited and its last output is forwarded.
    pub(crate) async fn finish(self, control: &Control) -> CommandOutcome {
        let outcome = supervise(self.pid, self.exit, control).await;
        tokio::join!(self.stdout.finish(), self.stderr.finish());
        // The next program's log has its own writer, which must not overtake this one.
        if !self.task_log.flush(TASK_LOG_TIMEOUT).await {
            tracing::warn!("the task log is slow; later output in it may be out of order");
        }
        outcome
    }
}

struct RunningPump {
    exited_tx: oneshot::Sender<()>,
    done: oneshot::Receiver<()>,
}

impl RunningPump {
    /// Notifies the pump that its program has exited, and waits for its last output. The pump signals completion by
    /// dropping its sender.
    async fn finish(self) {
        let _ = self.exited_tx.send(());
        let _ = self.done.await;
    }
}

async fn either(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    tokio::select! {
        () = one => {}
        () = other => {}
    }
}

/// Waits for the exit and forwards signals meanwhile.
async fn supervise(pid: Pid, mut exit: oneshot::Receiver<ChildStatus>, control: &Control) -> CommandOutcome {
    let (mut requests, mut pauses) = (control.requests(), control.pauses());
    let mut is_stopped = false;
    loop {
        let request = tokio::select! {
            exit = &mut exit => {
                if is_stopped {
                    // Processes that it forked were stopped with it, and nothing else would continue them.
                    signal_group(pid, Signal::SIGCONT);
                }
                return CommandOutcome::Exited(exit.unwrap_or(ChildStatus::Signal(nix::libc::SIGKILL)));
            }
            request = requests.next() => request,
            Ok(()) = pauses.changed() => {
                is_stopped = *pauses.borrow_and_update();
                signal_group(pid, if is_stopped { Signal::SIGSTOP } else { Signal::SIGCONT });
                continue;
            }
        };
        match request {
            ControlRequest::Interrupt => {
                signal_group(pid, Signal::SIGINT);
                if !is_stopped {
                    // A stopped program handles the signal only when it is continued, as with `fg` after Ctrl-Z and
                    // Ctrl-C.
                    signal_group(pid, Signal::SIGCONT);
                }
            }
            ControlRequest::Terminate => {
                if is_stopped {
                    // A stopped process handles SIGTERM only after SIGCONT.
                    signal_group(pid, Signal::SIGCONT);
                }
                return CommandOutcome::Terminated(end_group(pid, exit).await);
            }
        }
    }
}

/// SIGTERM, then SIGKILL after a timeout, for the whole group, even if its leader exits first.
async fn end_group(pid: Pid, exit: oneshot::Receiver<ChildStatus>) -> ChildStatus {
    signal_group(pid, Signal::SIGTERM);
    let kill_at = Instant::now() + TERM_TIMEOUT;
    tokio::pin!(exit);
    let leader = timeout_at(kill_at, &mut exit).await;
    // The group id cannot be reused while the group has members.
    while killpg(pid, None).is_ok() && Instant::now() < kill_at {
        sleep(GROUP_POLL).await;
    }
    if killpg(pid, None).is_ok() {
        signal_group(pid, Signal::SIGKILL);
    }
    let exit = match leader {
        Ok(exit) => exit,
        Err(_) => timeout(KILL_TIMEOUT, exit).await.unwrap_or_else(|_| {
            tracing::warn!("process {pid} did not exit after SIGKILL; giving up on it");
            Ok(ChildStatus::Signal(nix::libc::SIGKILL))
        }),
    };
    exit.unwrap_or(ChildStatus::Signal(nix::libc::SIGKILL))
}

/// The outcome and the output of a program.
#[derive(Debug)]
pub(crate) struct CollectedOutput {
    /// How the program exited.
    pub outcome: CommandOutcome,
    /// The start of its standard output.
    pub stdout: Vec<u8>,
    /// The start of its standard error.
    pub stderr: Vec<u8>,
}

/// Keeps up to `limit_bytes` of each stream in memory.
struct OutputBuffer {
    limit_bytes: usize,
    stdout: Mutex<Vec<u8>>,
    stderr: Mutex<Vec<u8>>,
}

#[async_trait]
impl OutputSink for OutputBuffer {
    async fn deliver(&self, stream: Stream, chunk: Bytes) {
        let kept = match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        };
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let room = self.limit_bytes.saturating_sub(kept.len());
        kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
    }

    /// Programs produce no rich output.
    async fn show(&self, _: RichOutput) {}
}

#[cfg(test)]
#[path = "launcher_tests.rs"]
mod tests;
