//! Running one step to its exit code.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use crate::config::ChildEnv;
use crate::error::chain;
use crate::process::{Command, Control, Launcher, Outcome};
use crate::runtime::{Plan, Runtime, Severity};
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
}

impl Worker {
    /// Runs a step; its output is with the sink when this returns.
    pub(super) async fn run(&self, step: &Step, control: &Control) -> i32 {
        let directory = Path::new(".");
        match (step.kind, step.text.as_str()) {
            (StepKind::Code, code) => self.query(code, control).await,
            (_, "") => 0,
            (StepKind::Clean, HEURISTIC) => self.carry_out(self.runtime.clean(directory), control).await,
            (StepKind::Build, HEURISTIC) if directory.join("Makefile").is_file() => {
                self.carry_out(Plan::one(Command::shell("make")), control).await
            }
            (StepKind::Build, HEURISTIC) => self.carry_out(self.runtime.build(directory), control).await,
            (StepKind::Exec, HEURISTIC) => self.carry_out(self.runtime.execute(directory), control).await,
            (StepKind::Exec, line) => self.carry_out(Plan::one(Command::shell(line).in_batch_mode()), control).await,
            (_, line) => self.carry_out(Plan::one(Command::shell(line)), control).await,
        }
    }

    /// Writes the code to a file beside the user's, and removes it afterwards.
    async fn query(&self, code: &str, control: &Control) -> i32 {
        let Some(suffix) = self.runtime.query_suffix() else {
            tracing::error!("this runtime has no query mode");
            return 127;
        };
        let written = tempfile::Builder::new().prefix("tmp").suffix(suffix).tempfile_in(".").and_then(|mut file| {
            file.write_all(code.as_bytes())?;
            Ok(file.into_temp_path())
        });
        match written {
            Ok(source) => self.carry_out(self.runtime.query(&source), control).await,
            Err(error) => {
                tracing::error!("cannot write the code to a file in the working directory: {error}");
                INTERNAL_ERROR
            }
        }
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
                    let outcome = self.launcher.run(&command, &self.env, control).await;
                    let code = outcome.map_or_else(
                        |error| {
                            tracing::error!("{}", chain(&error));
                            error.code()
                        },
                        Outcome::code,
                    );
                    if code != 0 {
                        return code;
                    }
                }
                0
            }
        }
    }
}
