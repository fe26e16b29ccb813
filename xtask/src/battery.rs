//! `cargo xtask battery`: the kills for memory of `krunner_tests::battery`, on this machine, with a verdict.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use krunner_tests::battery::{self, Finding, Machine, Means, Outcome, Plan, Totals};
use serde_json::json;

use crate::tally::Check;
use crate::workspace::{build_binary, build_release, step};

const HELP: &str = "\
Real kills in memory cgroups of their own, watched by `krunner monitor` and `krunner monitor --no-bpf` at the same time. The \
truth is what the processes' parents and the kernel's own counter say. A case can be played several times (--rounds).

With BPF every victim has to be told of, as sure as can be, and nobody else. Without, every kill that the kernel \
counted has to be told of, 95 % of what is told has to be right, and never more than were counted. Where nobody was \
killed for memory (kill -9, another container) a single report is a failure.

Needs root and the memory controller. A case that cannot be had here is listed with the reason.

Examples:
  cargo xtask battery
  cargo xtask battery --only row shared-memory --means fallback
  cargo xtask battery --rounds 5 --json target/battery.json
  cargo xtask battery --list

Exit codes: 0 all as it should be, 1 a rule is broken or nothing could be played, 2 wrong usage.";

/// Arguments of `cargo xtask battery`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Play only cases with one of these in their names
    #[arg(long, value_name = "NAME", num_args = 1..)]
    only: Vec<String>,
    /// Watch by these means only: bpf, fallback
    #[arg(long, value_name = "MEANS", num_args = 1.., value_parser = means)]
    means: Vec<Means>,
    /// Play all of it so many times
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Write the outcomes and their sums to this file, too; - writes them to stdout, in place of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Print the names of the cases
    #[arg(long)]
    list: bool,
}

fn means(text: &str) -> Result<Means, String> {
    match text {
        "bpf" => Ok(Means::Bpf),
        "fallback" => Ok(Means::Fallback),
        _ => Err("it is bpf or fallback".to_owned()),
    }
}

/// Plays it; `false` when a rule is broken.
pub(crate) fn run(args: &Args) -> Result<bool> {
    if args.list {
        battery::names().for_each(|name| println!("{name}"));
        return Ok(true);
    }
    check_names(&args.only)?;
    let means = if args.means.is_empty() { Means::ALL.to_vec() } else { args.means.clone() };
    let plan = Plan {
        krunner: build_release("krunner")?,
        victim: build_binary("krunner-tests", "victim")?,
        means: means.clone(),
        only: args.only.clone(),
        machine: Machine::Shared,
    };
    let began = Instant::now();
    let mut outcomes = Vec::new();
    for round in 1..=args.rounds {
        step(&format!("round {round} of {}", args.rounds));
        outcomes.extend(battery::run(&plan, |outcome| eprintln!("{}", line(outcome))));
    }
    step(&format!("done in {} s", began.elapsed().as_secs()));
    let shortfalls: Vec<_> = means.iter().flat_map(|means| shortfalls(*means, &outcomes)).collect();
    let text = in_json(&outcomes, &means, &shortfalls);
    match args.json.as_deref() {
        Some(file) if file.as_os_str() == "-" => println!("{text:#}"),
        Some(file) => {
            fs::write(file, format!("{text:#}\n")).with_context(|| format!("cannot write {}", file.display()))?;
            print_table(&outcomes, &means, &shortfalls);
        }
        None => print_table(&outcomes, &means, &shortfalls),
    }
    if !is_any_judged(&outcomes) {
        bail!("no case could be played here");
    }
    Ok(shortfalls.is_empty())
}

/// Plays it, as part of a run of all tests. The fallback may have been kept from looking by whatever else this machine does:
/// if it falls short it has a second chance, and both are told.
pub(crate) fn test(krunner: &Path) -> Result<Vec<Check>> {
    let plan = Plan {
        krunner: krunner.to_owned(),
        victim: build_binary("krunner-tests", "victim")?,
        means: Means::ALL.to_vec(),
        only: Vec::new(),
        machine: Machine::Shared,
    };
    let mut outcomes = battery::run(&plan, |_| {});
    let short = shortfalls(Means::Fallback, &outcomes);
    if !short.is_empty() {
        print_table(&outcomes, &Means::ALL, &short);
        step("the fallback fell short (above) and is played again");
        outcomes.retain(|outcome| outcome.means != Means::Fallback);
        outcomes.extend(battery::run(&Plan { means: vec![Means::Fallback], ..plan }, |_| {}));
    }
    let is_any_judged = is_any_judged(&outcomes);
    let check = |(name, means): (&str, Means)| {
        let why_not = || battery::impossible(outcomes.iter()).lines().next().unwrap_or("no case").to_owned();
        let outcome = if is_any_judged { Ok(shortfalls(means, &outcomes)) } else { Err(why_not()) };
        Check { name: name.to_owned(), outcome }
    };
    print_table(&outcomes, &Means::ALL, &[]);
    Ok([("battery::bpf", Means::Bpf), ("battery::fallback", Means::Fallback)].map(check).into())
}

/// What these means should have reached and did not.
fn shortfalls(means: Means, outcomes: &[Outcome]) -> Vec<String> {
    let short = battery::shortfalls(means, outcomes, Machine::Shared).into_iter();
    short.map(|text| format!("{means}: {text}")).collect()
}

fn is_any_judged(outcomes: &[Outcome]) -> bool {
    outcomes.iter().any(|outcome| matches!(outcome.finding, Finding::Judged(_)))
}

fn print_table(outcomes: &[Outcome], means: &[Means], shortfalls: &[String]) {
    print!("\n{}", battery::table(outcomes, means));
    for text in shortfalls {
        println!("falls short: {text}");
    }
}

/// A name that no case has is a mistake, not an empty run.
pub(crate) fn check_names(only: &[String]) -> Result<()> {
    for part in only {
        if !battery::names().any(|name| name.contains(part.as_str())) {
            bail!("no case has `{part}` in its name; `cargo xtask battery --list` prints them");
        }
    }
    Ok(())
}

fn in_json(outcomes: &[Outcome], means: &[Means], shortfalls: &[String]) -> serde_json::Value {
    let totals = means.iter().map(|means| json!({ "means": means, "totals": Totals::of(*means, outcomes) }));
    json!({ "outcomes": outcomes, "totals": totals.collect::<Vec<_>>(), "shortfalls": shortfalls })
}

/// An outcome in short, as it comes.
pub(crate) fn line(outcome: &Outcome) -> String {
    let what = match &outcome.finding {
        Finding::Judged(score) if score.problems.is_empty() => format!("{} of {}", score.right, score.due),
        Finding::Judged(score) => format!("{} of {}: {}", score.right, score.due, score.problems.join("; ")),
        Finding::Impossible { reason } => format!("cannot be had here: {reason}"),
        Finding::Broken { reason } => format!("BROKEN: {reason}"),
    };
    format!("{} ({}): {what}", outcome.case, outcome.means)
}
