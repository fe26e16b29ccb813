//! `cargo xtask bench`: krunner beside the Python runner that it replaces, and beside what the
//! machine can do at all, in one run.
//!
//! `figures` says what is measured and what must be reached, `measure` takes the samples, `world`
//! starts and ends whatever is measured, `client` drives it, `peer` is a yardstick of our own.

mod client;
mod figures;
mod measure;
mod oom;
pub(crate) mod peer;
mod world;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::venv;
use crate::workspace::{build_release, on_path, step};
use figures::{Figure, Results};
use measure::{Lab, Plan};
use world::Programs;

const HELP: &str = "\
Each figure is the median over several rounds; every round measures both runners and the yardsticks. \
Needs root, for the namespaces in which the Python runner finds its fixed paths, and the Python \
environment of the tests, which is made when it is missing. A machine that does other work meanwhile \
gives worse figures.

Yardsticks: a libzmq echo in place of a runner; spawning and awaiting `/bin/sh -c true`; a copy loop \
from a pipe into a PUSH socket, which does nothing else.

Environment:
  KRUNNER_VENV   a Python environment to use as it is, in place of target/venv

Examples:
  cargo xtask bench
  cargo xtask bench --quick --only start rss
  cargo xtask bench --json target/bench.json

Exit codes: 0 every target is met, 1 one is missed (its row says MISSED) or the bench could not run, 2 wrong usage.";

/// Arguments of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Write the figures with all samples to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure only these
    #[arg(long, value_enum, value_name = "NAME", num_args = 1..)]
    only: Vec<Figure>,
    /// Fewer rounds and shorter ones
    #[arg(long)]
    quick: bool,
}

/// Measures; `false` when a target is missed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the bench needs root: the Python runner's paths are fixed, so it gets namespaces of its own");
    }
    if !on_path("unshare") {
        bail!("no `unshare` on this machine; `cargo xtask test --all` installs it");
    }
    let began = Instant::now();
    let python = venv::ensure()?;
    // A debug build of the copy loop would be an easy yardstick.
    let programs = Programs::new(build_release("krunner")?, build_release("xtask")?, python)?;
    let plan = if args.quick { Plan::QUICK } else { Plan::FULL };
    let mut lab = Lab::new(programs, plan, Results::new(&args.only))?;
    lab.run()?;

    let results = &lab.results;
    step(&format!("done in {} s", began.elapsed().as_secs()));
    println!("\n{}", results.table());
    if let Some(file) = &args.json {
        let text = format!("{:#}\n", results.json());
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        step(&format!("samples are in {}", file.display()));
    }
    Ok(results.all_met())
}
