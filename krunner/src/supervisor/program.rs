//! A program as the child of a job: started in its own process group, watched until it is ready, stopped with its group.
//!
//! Output goes to the runner's own stdout and stderr, as if inherited, and its last lines are kept for [`ProgramExit`].

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use nix::unistd::Pid;

use super::job::Progress;
use super::last_lines::LastLines;
use super::readiness::ChildReadiness;
use crate::config::ChildEnv;
use crate::process::{Command, CommandOutcome, Control, Launcher, RunningChild, SpawnError};

/// How to start a program.
#[derive(Debug, Clone)]
pub(crate) struct ProgramLaunch {
    /// The service's name, for the log.
    pub name: String,
    /// The command and its working directory.
    pub command: Command,
    /// The complete environment.
    pub env: ChildEnv,
}

/// How a program exited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProgramExit {
    /// The exit status.
    pub outcome: CommandOutcome,
    /// The cause, if more is known than the exit code.
    pub reason: Option<String>,
    /// The last lines of its output.
    pub last_lines: String,
    /// It was ready before it exited.
    pub was_ready: bool,
}

impl fmt::Display for ProgramExit {
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

/// Why a program did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramStartError {
    /// The program cannot be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The job was stopped before its program had started.
    #[error("stopped before it started")]
    Stopped,
}

/// A program that runs.
pub(crate) struct SupervisedProgram {
    name: String,
    running: RunningChild,
    lines: Arc<LastLines>,
    launcher: Launcher,
}

impl SupervisedProgram {
    /// Starts the program, which is stopped by `control`, also while it starts.
    ///
    /// # Errors
    /// When it cannot be started, or was stopped meanwhile.
    pub(crate) async fn start(
        launcher: &Launcher,
        launch: &ProgramLaunch,
        control: &Control,
    ) -> Result<Self, ProgramStartError> {
        let lines = Arc::new(LastLines::default());
        let launcher = Launcher { sink: lines.clone(), logs: None, ..launcher.clone() };
        match launcher.start(&launch.command, &launch.env, control).await? {
            ControlFlow::Continue(running) => Ok(Self { name: launch.name.clone(), running, lines, launcher }),
            ControlFlow::Break(_) => Err(ProgramStartError::Stopped),
        }
    }

    /// The pid, which is also the process group.
    #[must_use]
    pub(crate) fn pid(&self) -> Pid {
        self.running.pid()
    }

    /// Publishes when the program is ready, with this value, and waits until it exited.
    pub(crate) async fn watch<R, E>(
        self,
        readiness: impl ChildReadiness,
        ready: R,
        progress: &Progress<R, E>,
    ) -> ProgramExit {
        progress.running();
        let (pid, began) = (self.running.pid(), self.running.began());
        let mut was_ready = false;
        let opening = async {
            readiness.ready().await;
            was_ready = true;
            progress.ready(ready);
            std::future::pending().await
        };
        let outcome = tokio::select! {
            biased;
            outcome = self.running.finish(progress.control()) => outcome,
            never = opening => never,
        };
        let reason = self.launcher.explain(pid, outcome, began.elapsed()).await.map(|reason| reason.text);
        let exit = ProgramExit { outcome, reason, last_lines: self.lines.text(), was_ready };
        match outcome {
            CommandOutcome::Terminated(_) | CommandOutcome::NotStarted => {
                tracing::info!("service {} was stopped", self.name);
            }
            CommandOutcome::Exited(_) => tracing::info!("service {} {exit}", self.name),
        }
        exit
    }
}

#[cfg(test)]
mod tests {
    use super::super::job::{Attempt, AttemptEnd, Job, JobState, StartStage};
    use super::super::readiness::{PortReadiness, PortTaken};
    use super::super::restart::RestartPolicy;
    use super::*;
    use crate::process::{ChildStatus, Console, NoExplanation, OomScorePolicy, Reaper};
    use crate::tasks::TaskGroup;
    use crate::writer::Writer;
    use std::collections::BTreeMap;
    use std::net::TcpListener;
    use std::time::Duration;
    use tokio::time::{sleep, timeout};

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

    fn launch(command: Command) -> ProgramLaunch {
        ProgramLaunch { name: "s".into(), command, env: BTreeMap::new() }
    }

    struct OnPort {
        launcher: Launcher,
        launch: ProgramLaunch,
        port: u16,
    }

    impl Attempt for OnPort {
        type Ready = ();
        type End = ProgramExit;

        async fn run(&mut self, progress: &Progress<(), ProgramExit>) -> AttemptEnd<ProgramExit> {
            let readiness = PortReadiness::of_free_port(self.port).await.unwrap();
            let program = SupervisedProgram::start(&self.launcher, &self.launch, progress.control()).await.unwrap();
            AttemptEnd::Ended(program.watch(readiness, (), progress).await)
        }
    }

    async fn within<T>(waited: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(10), waited).await.expect("it happens soon")
    }

    /// One test for everything that starts processes, because a reaper takes all children of this process.
    #[tokio::test]
    async fn a_program_is_followed_from_start_to_end() {
        let launcher = world();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let taken: PortTaken = PortReadiness::of_free_port(port).await.unwrap_err();
        let message = taken.to_string();
        let us = format!("(process {})", std::process::id());
        assert!(
            message.starts_with(&format!("port {port} is already in use by ")) && message.ends_with(&us),
            "{message}"
        );
        drop(listener);

        let job = |line: &str| {
            let attempt = OnPort { launcher: launcher.clone(), launch: launch(Command::shell(line)), port };
            Job::spawn(&launcher.tasks, "test", "s", RestartPolicy::Never, attempt)
        };
        let sleeping = job("exec sleep 1000");
        within(sleeping.wait_for(|state| *state == JobState::Starting(StartStage::Running))).await;
        sleep(Duration::from_millis(150)).await;
        assert!(!sleeping.state().is_ready(), "its port has no listener");
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        assert_eq!(within(sleeping.wait_for(JobState::is_ready)).await, JobState::Ready(()));
        sleeping.stop();
        let JobState::Stopped { end, .. } = within(sleeping.wait_for(JobState::is_stopped)).await else { panic!() };
        assert_eq!((end.outcome, end.was_ready), (CommandOutcome::Terminated(ChildStatus::Signal(15)), true));
        drop(listener);

        let failing = job("echo starting; echo no such module >&2; exit 3");
        let JobState::Stopped { end, .. } = within(failing.wait_for(JobState::is_stopped)).await else { panic!() };
        assert_eq!(end.to_string(), "exited with code 3; last output:\nno such module");

        let start = async |command| SupervisedProgram::start(&launcher, &launch(command), &Control::new()).await.err();
        let missing = start(Command::argv(["/nowhere/x"])).await;
        assert!(matches!(missing, Some(ProgramStartError::Spawn(SpawnError::NotFound(_)))));
        let elsewhere = start(Command::argv(["/bin/true"]).in_directory("/nowhere")).await;
        assert!(matches!(elsewhere, Some(ProgramStartError::Spawn(SpawnError::NoFolder(_)))));
    }
}
