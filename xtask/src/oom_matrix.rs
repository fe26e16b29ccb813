//! `cargo xtask oom-matrix`: runs `krunner_tests::oom_matrix` on this machine and checks the required accuracy.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use krunner_tests::flaky::Retry;
use krunner_tests::oom_matrix::{self, CaseResult, Machine, MatrixPlan, MonitorMode, Outcome, Requirements, Totals};
use serde_json::json;

use crate::summary::Check;
use crate::workspace::{build_binary, build_release, step};

const HELP: &str = "\
Causes real OOM kills in scratch memory cgroups while `krunner monitor` and `krunner monitor --no-bpf` run side by side, and \
scores their reports. The ground truth is the wait statuses of the victims and the kernel's own counter. --rounds repeats \
all cases.

With BPF every victim must be reported, at the right confidence, and no other process. Without BPF every kill that the \
kernel counted must be reported, 95 % of the reports must be correct, and there must not be more reports than kills. \
In a case without an OOM kill (kill -9, another container) any report is a failure.

Needs root and the memory controller. A case that cannot run on this machine is listed with the reason.

Examples:
  cargo xtask oom-matrix
  cargo xtask oom-matrix --only row shared-memory --means fallback
  cargo xtask oom-matrix --rounds 5 --json target/oom-matrix.json
  cargo xtask oom-matrix --list

Exit codes: 0 all requirements are met, 1 a requirement is not met or no case could run, 2 wrong usage.";

/// Arguments of `cargo xtask oom-matrix`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Run only cases whose name contains one of these
    #[arg(long, value_name = "NAME", num_args = 1..)]
    only: Vec<String>,
    /// Run only these monitors: bpf, fallback
    #[arg(long = "means", value_name = "MODE", num_args = 1.., value_parser = parse_mode)]
    modes: Vec<MonitorMode>,
    /// Run all cases this many times
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Also write the outcomes and totals to FILE as JSON; - prints JSON instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// List the cases and exit
    #[arg(long)]
    list: bool,
}

fn parse_mode(text: &str) -> Result<MonitorMode, String> {
    match text {
        "bpf" => Ok(MonitorMode::Bpf),
        "fallback" => Ok(MonitorMode::Fallback),
        _ => Err("expected bpf or fallback".to_owned()),
    }
}

/// Runs the matrix. Returns `false` when a requirement is not met.
pub(crate) fn run(args: &Args) -> Result<bool> {
    if args.list {
        oom_matrix::names().for_each(|name| println!("{name}"));
        return Ok(true);
    }
    check_names(&args.only)?;
    let modes = if args.modes.is_empty() { MonitorMode::ALL.to_vec() } else { args.modes.clone() };
    let plan = MatrixPlan {
        krunner: build_release("krunner")?,
        victim: build_binary("krunner-tests", "victim")?,
        modes: modes.clone(),
        only: args.only.clone(),
        machine: Machine::Shared,
    };
    let began = Instant::now();
    let mut outcomes = Vec::new();
    for round in 1..=args.rounds {
        step(&format!("round {round} of {}", args.rounds));
        outcomes.extend(oom_matrix::run(&plan, |outcome| eprintln!("{}", line(outcome))));
    }
    step(&format!("done in {} s", began.elapsed().as_secs()));
    let shortfalls: Vec<_> = modes.iter().flat_map(|mode| shortfalls(*mode, &outcomes)).collect();
    let text = in_json(&outcomes, &modes, &shortfalls);
    match args.json.as_deref() {
        Some(file) if file.as_os_str() == "-" => println!("{text:#}"),
        Some(file) => {
            fs::write(file, format!("{text:#}\n")).with_context(|| format!("cannot write {}", file.display()))?;
            print_table(&outcomes, &modes, &shortfalls);
        }
        None => print_table(&outcomes, &modes, &shortfalls),
    }
    if !is_any_scored(&outcomes) {
        bail!("no case could run on this machine");
    }
    Ok(shortfalls.is_empty())
}

/// Runs the matrix as part of `cargo xtask test`. Load on this machine may delay the fallback's scans of `/proc`, so the fallback
/// is run a second time if it misses a requirement. Both results are printed.
pub(crate) fn test(krunner: &Path, victim: PathBuf) -> Vec<Check> {
    let plan = MatrixPlan {
        krunner: krunner.to_owned(),
        victim,
        modes: MonitorMode::ALL.to_vec(),
        only: Vec::new(),
        machine: Machine::Shared,
    };
    let mut outcomes = oom_matrix::run(&plan, |_| {});
    let short = shortfalls(MonitorMode::Fallback, &outcomes);
    if !short.is_empty() {
        print_table(&outcomes, &MonitorMode::ALL, &short);
        step("the fallback missed a requirement (see above); running it again");
        Retry::new("oom-matrix::fallback", &short.join("; "), 1, 2).record();
        outcomes.retain(|outcome| outcome.mode != MonitorMode::Fallback);
        outcomes.extend(oom_matrix::run(&MatrixPlan { modes: vec![MonitorMode::Fallback], ..plan }, |_| {}));
    }
    let is_any_scored = is_any_scored(&outcomes);
    let check = |(name, mode): (&str, MonitorMode)| {
        let reason = || oom_matrix::unavailable(outcomes.iter()).lines().next().unwrap_or("no case ran").to_owned();
        let outcome = if is_any_scored { Ok(shortfalls(mode, &outcomes)) } else { Err(reason()) };
        Check { name: name.to_owned(), outcome }
    };
    print_table(&outcomes, &MonitorMode::ALL, &[]);
    [("oom-matrix::bpf", MonitorMode::Bpf), ("oom-matrix::fallback", MonitorMode::Fallback)].map(check).into()
}

/// The requirements that this mode missed, prefixed with its name.
fn shortfalls(mode: MonitorMode, outcomes: &[Outcome]) -> Vec<String> {
    let short = oom_matrix::shortfalls(mode, outcomes, Requirements::REAL).into_iter();
    short.map(|text| format!("{mode}: {text}")).collect()
}

fn is_any_scored(outcomes: &[Outcome]) -> bool {
    outcomes.iter().any(|outcome| matches!(outcome.result, CaseResult::Scored(_)))
}

fn print_table(outcomes: &[Outcome], modes: &[MonitorMode], shortfalls: &[String]) {
    print!("\n{}", oom_matrix::table(outcomes, modes));
    for text in shortfalls {
        println!("requirement not met: {text}");
    }
}

/// Fails for a name that matches no case, instead of running none.
pub(crate) fn check_names(only: &[String]) -> Result<()> {
    for part in only {
        if !oom_matrix::names().any(|name| name.contains(part.as_str())) {
            bail!("no case name contains `{part}`; `cargo xtask oom-matrix --list` lists the cases");
        }
    }
    Ok(())
}

fn in_json(outcomes: &[Outcome], modes: &[MonitorMode], shortfalls: &[String]) -> serde_json::Value {
    let totals = modes.iter().map(|mode| json!({ "means": mode, "totals": Totals::of(*mode, outcomes) }));
    json!({ "outcomes": outcomes, "totals": totals.collect::<Vec<_>>(), "shortfalls": shortfalls })
}

/// Formats an outcome as one line.
pub(crate) fn line(outcome: &Outcome) -> String {
    let what = match &outcome.result {
        CaseResult::Scored(score) if score.problems.is_empty() => format!("{} of {}", score.correct, score.due),
        CaseResult::Scored(score) => format!("{} of {}: {}", score.correct, score.due, score.problems.join("; ")),
        CaseResult::Unavailable { reason } => format!("not available here: {reason}"),
        CaseResult::Failed { reason } => format!("FAILED: {reason}"),
    };
    format!("{} ({}): {what}", outcome.case, outcome.mode)
}
