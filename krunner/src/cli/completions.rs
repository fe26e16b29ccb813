//! `krunner completions`: what a shell needs to complete command lines of krunner.

use std::process::ExitCode;

use clap_complete::generate;

use super::args::{CompletionsArgs, documented};
use super::stdout::print;
use crate::exit::Exit;

pub(super) fn completions(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    generate(args.shell, &mut documented(), "krunner", &mut script);
    print(&script)?;
    Ok(Exit::Ok.into())
}
