//! `cargo xtask bench`: compares krunner with the Python runner that it replaces and with baselines that show what the machine
//! can do.
//!
//! `figures` defines the figures and their targets, `measure` takes the samples, `sandbox` starts and stops what is measured,
//! `client` drives it, and `peer` is one of the baselines.

mod client;
mod figures;
mod measure;
mod node;
mod oom;
pub(crate) mod peer;
mod sandbox;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::venv;
use crate::workspace::{build_release, on_path, step};
use figures::{Figure, Results};
use measure::{Bench, BenchPlan};
use sandbox::Programs;

const HELP: &str = "\
Each figure is the median of several rounds. Every round measures both runners and the baselines. \
Needs root, for the namespaces that provide the Python runner's fixed paths, and the Python environment of the tests, \
which is created if it is missing. Other load on the machine makes the figures worse.

Baselines: a libzmq echo server instead of a runner; spawning `/bin/sh -c true` and waiting for it; a loop that only \
copies from a pipe into a PUSH socket.

Environment:
  KRUNNER_VENV   use this Python environment unchanged instead of target/venv

Examples:
  cargo xtask bench
  cargo xtask bench --quick --only start rss
  cargo xtask bench --json target/bench.json

Exit codes: 0 every target is met, 1 a target is missed (its row says MISSED) or the bench could not run, 2 wrong usage.";

/// Arguments of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Also write the figures and all samples to FILE as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure only these figures
    #[arg(long, value_enum, value_name = "NAME", num_args = 1..)]
    only: Vec<Figure>,
    /// Run fewer and shorter rounds
    #[arg(long)]
    quick: bool,
}

/// Runs the bench. Returns `false` when a target is missed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the bench needs root: the Python runner has fixed paths and runs in namespaces of its own");
    }
    if !on_path("unshare") {
        bail!("`unshare` is missing; `cargo xtask test --all` installs it");
    }
    let began = Instant::now();
    let python = venv::ensure()?;
    // In release, because a debug build of the copy loop would be too slow a baseline.
    let programs = Programs::new(build_release("krunner")?, build_release("xtask")?, python)?;
    let plan = if args.quick { BenchPlan::QUICK } else { BenchPlan::FULL };
    let mut bench = Bench::new(programs, plan, Results::new(&args.only))?;
    bench.run()?;

    let results = &bench.results;
    step(&format!("done in {} s", began.elapsed().as_secs()));
    println!("\n{}", results.table());
    if let Some(file) = &args.json {
        let text = format!("{:#}\n", results.json());
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        step(&format!("samples are in {}", file.display()));
    }
    Ok(results.all_met())
}
