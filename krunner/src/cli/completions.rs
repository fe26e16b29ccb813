//! `krunner completions`: what a shell has to know to complete krunner's command lines.

use std::process::ExitCode;

use super::args::{CompletionsArgs, command};
use super::stdout;
use crate::exit::Exit;

/// Prints it.
pub(super) fn completions(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "krunner", &mut script);
    stdout::print(&script)?;
    Ok(Exit::Ok.into())
}
