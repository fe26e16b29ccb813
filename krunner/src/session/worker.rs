//! Runs a step and returns its exit code.

use std::path::Path;
use std::sync::Arc;

use crate::config::ChildEnv;
use crate::error::chain;
use crate::logging::OPERATOR;
use crate::process::{Command, Control, ExplainedOutcome, Launcher, Stream, until_stopped};
use crate::runtime::{Engine, Plan, Runtime, ScratchFiles, Severity, make_or_build};
use crate::tasks::blocking;
use crate::wire::{Step, StepKind};

/// The command line that selects the runtime's heuristic.
const HEURISTIC: &str = "*";

/// The exit code if the runner or the machine is at fault.
const INTERNAL_ERROR: i32 = -1;

/// Everything that running a step needs.
pub(super) struct Worker {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) launcher: Launcher,
    pub(super) env: ChildEnv,
    pub(super) engine: Option<Arc<dyn Engine>>,
}

impl Worker {
    /// Runs a step; all its output is delivered to the sink before this returns.
    pub(super) async fn run(&self, step: &Step, control: &Control) -> i32 {
        let plan = match (step.kind, step.text.as_str()) {
            (StepKind::Code, code) => return self.query(code.to_owned(), control).await,
            (_, "") => return 0,
            (kind, HEURISTIC) => {
                let runtime = Arc::clone(&self.runtime);
                match prepared(control, move || heuristic(&*runtime, kind)).await {
                    Ok(plan) => plan,
                    Err(exit_code) => return exit_code,
                }
            }
            (StepKind::Exec, line) => Plan::one(Command::shell(line).in_batch_mode()),
            (_, line) => Plan::one(Command::shell(line)),
        };
        self.execute(plan, control).await
    }

    /// Runs the code in the engine. Without an engine, writes it to files in the working directory and removes the
    /// files and all build results afterwards.
    async fn query(&self, code: String, control: &Control) -> i32 {
        if let Some(engine) = &self.engine {
            return engine.run(&code, control).await;
        }
        let (runtime, mut scratch) = (Arc::clone(&self.runtime), ScratchFiles::new("."));
        // If this is abandoned, the thread removes the files.
        let (plan, scratch) = match prepared(control, move || (runtime.query(&code, &mut scratch), scratch)).await {
            Ok(prepared) => prepared,
            Err(exit_code) => return exit_code,
        };
        let exit_code = match plan {
            Ok(plan) => self.execute(plan, control).await,
            Err(error) => {
                tracing::error!("cannot write the code to a file in the working directory: {error}");
                INTERNAL_ERROR
            }
        };
        if until_stopped(control, blocking(move || drop(scratch))).await.is_err() {
            tracing::warn!("files of the step are not removed yet; the working directory may be on a mount that hangs");
        }
        exit_code
    }

    async fn execute(&self, plan: Plan, control: &Control) -> i32 {
        match plan {
            Plan::Nothing { message, severity, exit_code } => {
                match severity {
                    Severity::Info => tracing::info!("{message}"),
                    Severity::Warning => tracing::warn!("{message}"),
                    Severity::Error => tracing::error!("{message}"),
                }
                exit_code
            }
            Plan::Run(commands) => {
                for command in commands {
                    let code = self.run_program(&command, control).await;
                    if code != 0 {
                        return code;
                    }
                }
                0
            }
        }
    }
}

impl Worker {
    /// Runs a program and returns its exit code. Sends the user the reason for a kill, unless a report covers it.
    async fn run_program(&self, command: &Command, control: &Control) -> i32 {
        match self.launcher.run_explained(command, &self.env, control).await {
            Ok(ExplainedOutcome { outcome, reason }) => {
                if let Some(reason) = reason.filter(|reason| !reason.is_reported) {
                    let line = format!("{}\n", reason.text);
                    tracing::info!(target: OPERATOR, "{}", reason.text);
                    self.launcher.sink.deliver(Stream::Stderr, line.into()).await;
                }
                outcome.code()
            }
            Err(error) => {
                tracing::error!("{}", chain(&error));
                error.code()
            }
        }
    }
}

/// Does file I/O before a step's program starts. The error is the exit code of a step that was interrupted or terminated while
/// it hung.
async fn prepared<T: Send + 'static>(control: &Control, work: impl FnOnce() -> T + Send + 'static) -> Result<T, i32> {
    until_stopped(control, blocking(work)).await.map_err(|outcome| {
        tracing::warn!("the step has not started; the working directory may be on a mount that hangs");
        outcome.code()
    })
}

/// The plan for `*` in the current working directory.
fn heuristic(runtime: &dyn Runtime, kind: StepKind) -> Plan {
    let directory = Path::new(".");
    match kind {
        StepKind::Clean => runtime.clean(directory),
        StepKind::Build => make_or_build(runtime, directory),
        StepKind::Exec | StepKind::Code => runtime.execute(directory),
    }
}
