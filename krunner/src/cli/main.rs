//! Dispatches the command line and maps results to exit codes.

use std::process::ExitCode;

use clap::Parser as _;
use nix::sys::signal::SigSet;

use super::args::{Args, Subcommand};
use super::async_runtime::in_runtime;
use super::{completions, doctor, languages, man, monitor, node, oom, run, selftest, send, services};
use crate::config::require_stack;
use crate::exit::Exit;

/// Parses the command line, runs the command, and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    match require_stack() {
        Ok(()) => dispatch(),
        Err(limit) => failed(&limit.into()),
    }
}

/// Apart, because its variables need more of the stack than [`main`] has checked.
#[inline(never)]
fn dispatch() -> ExitCode {
    // A caller's mask would apply to every program we start, and to our own SIGTERM.
    let _ = SigSet::all().thread_unblock();
    let args = Args::parse();
    let ended = match args.subcommand {
        Some(Subcommand::Send(request)) => in_runtime(send::send(request)),
        Some(Subcommand::Selftest(options)) => in_runtime(selftest::selftest(options)),
        Some(Subcommand::Monitor(options)) => monitor::monitor(&options),
        Some(Subcommand::Node(options)) => node::node(&options),
        Some(Subcommand::Oom(options)) => oom::oom(&options.command),
        Some(Subcommand::Doctor(options)) => doctor::doctor(&options),
        Some(Subcommand::Languages(options)) => languages::languages(&options),
        Some(Subcommand::Services(options)) => services::services(&options),
        Some(Subcommand::Man(options)) => man::man(&options),
        Some(Subcommand::Completions(options)) => completions::completions(&options),
        None => run::run(args.runner),
    };
    match ended {
        Ok(code) => code,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("krunner: {error:#}");
    Exit::Failure.into()
}
