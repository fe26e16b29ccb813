//! Running one step to its exit code.

use std::path::Path;
use std::sync::Arc;

use crate::config::ChildEnv;
use crate::error::chain;
use crate::logging::OPERATOR;
use crate::process::{Command, Control, ExplainedEnd, Launcher, Stream};
use crate::runtime::{Engine, Plan, Runtime, Scratch, Severity, make_or_build};
use crate::tasks::blocking;
use crate::wire::{Step, StepKind};

/// What stands for "you know how" in place of a command line.
const HEURISTIC: &str = "*";

/// When the fault is ours or the machine's.
const INTERNAL_ERROR: i32 = -1;

/// What steps are run with.
pub(super) struct Worker {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) launcher: Launcher,
    pub(super) env: ChildEnv,
    pub(super) engine: Option<Arc<dyn Engine>>,
}

impl Worker {
    /// Runs a step; its output is with the sink when this returns.
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
        self.carry_out(plan, control).await
    }

    /// Gives the code to the engine; without one, writes it to files in the working directory, and removes all that
    /// was made of them afterwards.
    async fn query(&self, code: String, control: &Control) -> i32 {
        if let Some(engine) = &self.engine {
            return engine.run(&code, control).await;
        }
        let (runtime, mut scratch) = (Arc::clone(&self.runtime), Scratch::new("."));
        let (plan, scratch) = blocking(move || (runtime.query(&code, &mut scratch), scratch)).await;
        let exit_code = match plan {
            Ok(plan) => self.carry_out(plan, control).await,
            Err(error) => {
                tracing::error!("cannot write the code to a file in the working directory: {error}");
                INTERNAL_ERROR
            }
        };
        blocking(move || drop(scratch)).await;
        exit_code
    }

    async fn carry_out(&self, plan: Plan, control: &Control) -> i32 {
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
    /// The exit code. Why it was killed goes to the user, unless a report has said so.
    async fn run_program(&self, command: &Command, control: &Control) -> i32 {
        match self.launcher.run_explained(command, &self.env, control).await {
            Ok(ExplainedEnd { outcome, reason }) => {
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

/// What `*` stands for in the working directory as it is now.
fn heuristic(runtime: &dyn Runtime, kind: StepKind) -> Plan {
    let directory = Path::new(".");
    match kind {
        StepKind::Clean => runtime.clean(directory),
        StepKind::Build => make_or_build(runtime, directory),
        StepKind::Exec | StepKind::Code => runtime.execute(directory),
    }
}
