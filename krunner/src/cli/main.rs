//! From the arguments to the exit code.

use std::process::ExitCode;

use clap::Parser as _;

use super::args::{Args, Task};
use super::{completions, doctor, languages, man, monitor, run, selftest, send, services};
use crate::exit::Exit;
use crate::tasks::keep_threads;

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    let ended = match args.task {
        Some(Task::Send(request)) => in_runtime(send::send(request)),
        Some(Task::Selftest(options)) => in_runtime(selftest::selftest(options)),
        Some(Task::Monitor(options)) => monitor::monitor(&options),
        Some(Task::Doctor(options)) => doctor::doctor(&options),
        Some(Task::Languages(options)) => languages::languages(&options),
        Some(Task::Services(options)) => services::services(&options),
        Some(Task::Man(options)) => man::man(&options),
        Some(Task::Completions(options)) => completions::completions(&options),
        None => run::run(args.runner),
    };
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("krunner: {error:#}");
            Exit::Failure.into()
        }
    }
}

/// One thread: the runner moves bytes, and user code needs the cores more.
pub(super) fn in_runtime<T>(main: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    keep_threads();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(main)
}
