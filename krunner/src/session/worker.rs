//! Runs a step and returns its exit code.

use std::path::Path;
use std::sync::Arc;

use crate::config::ChildEnv;
use crate::error::chain;
use crate::logging::OPERATOR;
use crate::process::{Command, Control, ExplainedOutcome, Launcher, Stream};
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
                blocking(move || heuristic(&*runtime, kind)).await
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
        let (plan, scratch) = blocking(move || (runtime.query(&code, &mut scratch), scratch)).await;
        let exit_code = match plan {
            Ok(plan) => self.execute(plan, control).await,
            Err(error) => {
                tracing::error!("cannot write the code to a file in the working directory: {error}");
                INTERNAL_ERROR
            }
        };
        blocking(move || drop(scratch)).await;
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

/// The plan for `*` in the current working directory.
fn heuristic(runtime: &dyn Runtime, kind: StepKind) -> Plan {
    let directory = Path::new(".");
    match kind {
        StepKind::Clean => runtime.clean(directory),
        StepKind::Build => make_or_build(runtime, directory),
        StepKind::Exec | StepKind::Code => runtime.execute(directory),
    }
}
