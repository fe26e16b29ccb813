//! `cargo xtask vm`: the battery on other kernels, in virtual machines.
//!
//! `kernels` has the kernels, `image` what is in a machine (an archive written by `cpio`), `machine` boots one and listens.
//! Here: which, how many at a time, and what it all came to.

mod cpio;
mod image;
mod kernels;
mod machine;

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use krunner_tests::battery::{self, Finding, Machine, Means, Outcome, Totals};
use serde_json::{Value, json};

use crate::battery::{check_names, line};
use crate::host;
use crate::tally::Check;
use crate::workspace::{step, target_dir};
use kernels::Kernel;
use machine::{Event, Run};

const HELP: &str = "\
Each kernel boots under qemu with an emulated processor: no rights are needed, and no KVM. In it are a static krunner, \
the battery of `cargo xtask battery` and busybox; cgroups are version 2, nothing mounts tracefs, and all memory may be eaten. \
Two machines run at a time where there are two processors.

Kernels are Debian's own packages, fetched by apt from the mirror that this machine uses, unpacked to target/vm/kernels and \
kept there. A version is the beginning of one: 6.1, 6.12, 7 (the newest 7.x). Another kernel can be put there by hand, as \
target/vm/kernels/VERSION/vmlinuz.

What a kernel cannot do is shown as n/a, with the reason. Delays are not judged: they are those of an emulator.

Examples:
  cargo xtask vm
  cargo xtask vm --kernel 5.10 6.12 --only row group global
  cargo xtask vm --kernel 6.18 --verbose
  cargo xtask vm --json target/vm.json

Exit codes: 0 all kernels pass, 1 one fails or a machine did not reach its end (with the end of its console), 2 wrong usage.";

/// Arguments of `cargo xtask vm`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Boot these kernels
    #[arg(long, value_name = "VERSION", num_args = 1.., default_values_t = kernels::DEFAULT.map(str::to_owned))]
    kernel: Vec<String>,
    /// Play only cases with one of these in their names
    #[arg(long, value_name = "NAME", num_args = 1..)]
    only: Vec<String>,
    /// Write the outcomes to this file, too; - writes them to stdout, in place of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Tell every outcome as it comes
    #[arg(long)]
    verbose: bool,
}

/// A kernel, and what its machine's run came to.
struct Tried {
    kernel: Kernel,
    run: Run,
}

/// Boots all; `false` when one fails.
pub(crate) fn run(args: &Args) -> Result<bool> {
    check_names(&args.only)?;
    if let Some(missing) = host::missing_for_machines() {
        bail!("{missing}; `cargo xtask test --all` installs it");
    }
    let tried = try_all(&args.kernel, &args.only, args.verbose)?;
    let is_on_stdout = args.json.as_deref().is_some_and(|file| file == Path::new("-"));
    match args.json.as_deref() {
        Some(_) if is_on_stdout => println!("{:#}", in_json(&tried)),
        Some(file) => fs::write(file, format!("{:#}\n", in_json(&tried)))
            .with_context(|| format!("cannot write {}", file.display()))?,
        None => {}
    }
    if !is_on_stdout {
        print!("\n{}", table(&tried));
    }
    Ok(tried.iter().all(|tried| tried.shortfalls().is_empty()))
}

/// The default kernels, as part of a run of all tests.
pub(crate) fn test() -> Result<Vec<Check>> {
    let tried = try_all(&kernels::DEFAULT.map(str::to_owned), &[], false)?;
    print!("\n{}", table(&tried));
    Ok(tried.iter().map(|tried| check(&tried.kernel.wanted, Ok(tried.shortfalls()))).collect())
}

/// The same where they are not booted.
pub(crate) fn skipped(reason: &str) -> Vec<Check> {
    kernels::DEFAULT.iter().map(|version| check(version, Err(reason.to_owned()))).collect()
}

fn check(version: &str, outcome: Result<Vec<String>, String>) -> Check {
    Check { name: format!("vm::{version}"), outcome }
}

fn try_all(versions: &[String], only: &[String], verbose: bool) -> Result<Vec<Tried>> {
    let folder = target_dir()?.join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let kernels = kernels::ensure(versions, &folder)?;
    let image = image::pack(&folder)?;
    let began = Instant::now();
    let at_once = thread::available_parallelism().map_or(1, usize::from).min(kernels.len());
    step(&format!("booting {} kernels, {at_once} at a time", kernels.len()));
    let waiting = Mutex::new(kernels.iter().cloned().collect::<VecDeque<_>>());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = || -> Result<Vec<Tried>> {
        let mut tried = Vec::new();
        while let Some(kernel) = next() {
            let on = Instant::now();
            let run = machine::boot(&kernel, &image, only, &folder, |event| progress(&kernel, event, on, verbose))?;
            println!("{}: {} in {} s", kernel.wanted, verdict(&run), run.took.as_secs());
            tried.push(Tried { kernel, run });
        }
        Ok(tried)
    };
    let done: Vec<Result<Vec<Tried>>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut tried: Vec<Tried> = done.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    tried.sort_by_key(|tried| versions.iter().position(|version| *version == tried.kernel.wanted));
    step(&format!("{} kernels in {} s", tried.len(), began.elapsed().as_secs()));
    Ok(tried)
}

fn progress(kernel: &Kernel, event: &Event, began: Instant, verbose: bool) {
    let wanted = &kernel.wanted;
    match event {
        Event::Booted { kernel: release } => {
            println!("{wanted}: {release} ({}) is up after {:.1} s", kernel.package, began.elapsed().as_secs_f64());
        }
        Event::Outcome { outcome } if verbose || !is_fine(outcome) => {
            println!("{wanted}: {:5.1} s {}", began.elapsed().as_secs_f64(), line(outcome));
        }
        Event::Survivor { problem: Some(problem) } => println!("{wanted}: the session did not survive: {problem}"),
        Event::Survivor { problem: None } => println!("{wanted}: a session survives a group kill around it"),
        Event::Outcome { .. } | Event::Done | Event::Failed { .. } => {}
    }
}

fn is_fine(outcome: &Outcome) -> bool {
    matches!(&outcome.finding, Finding::Judged(score) if score.missed + score.wrong == 0 && score.problems.is_empty())
}

fn verdict(run: &Run) -> String {
    match &run.fault {
        Some(fault) => format!("FAILED, {fault}"),
        None => format!("{} outcomes", run.outcomes.len()),
    }
}

impl Tried {
    /// What it should have reached and did not.
    fn shortfalls(&self) -> Vec<String> {
        let of = |means: &Means| {
            let short = battery::shortfalls(*means, &self.run.outcomes, Machine::Own).into_iter();
            short.map(|text| format!("{means}: {text}")).collect::<Vec<_>>()
        };
        let problem = self.run.problem.iter().map(|problem| format!("a session with CAP_SYS_RESOURCE: {problem}"));
        let fault = self.run.fault.clone().into_iter().chain(problem);
        let nothing = self.run.outcomes.is_empty().then(|| "no case was played".to_owned());
        fault.chain(nothing).chain(Means::ALL.iter().flat_map(of)).collect()
    }
}

fn table(tried: &[Tried]) -> String {
    let named: Vec<_> = tried
        .iter()
        .map(|tried| {
            let release = tried.run.release.as_deref().unwrap_or(&tried.kernel.wanted);
            let short = release.split("-cloud").next().unwrap_or(release);
            (short.to_owned(), tried.run.outcomes.clone())
        })
        .collect();
    let mut text = battery::kernels(&named);
    for ((release, outcomes), tried) in named.iter().zip(tried) {
        for means in Means::ALL {
            let totals = Totals::of(means, outcomes);
            let _ = writeln!(
                text,
                "{release}, {means}: {} of {} reports right, {} wrong; precision {:.1} %, recall {:.1} %, heard of {:.1} %",
                totals.right,
                totals.due,
                totals.wrong,
                totals.precision_percent,
                totals.recall_percent,
                totals.heard_percent
            );
        }
        text.push_str(
            &battery::impossible(outcomes.iter()).replace("cannot be had here", &format!("{release} cannot")),
        );
        for shortfall in tried.shortfalls() {
            let _ = writeln!(text, "{release} FAILS: {shortfall}");
        }
    }
    text
}

fn in_json(tried: &[Tried]) -> Value {
    let kernel = |tried: &Tried| {
        json!({
            "wanted": tried.kernel.wanted,
            "package": tried.kernel.package,
            "release": tried.run.release,
            "seconds": tried.run.took.as_secs_f64(),
            "outcomes": tried.run.outcomes,
            "totals": Means::ALL.map(|means| json!({ "means": means, "totals": Totals::of(means, &tried.run.outcomes) })),
            "shortfalls": tried.shortfalls(),
        })
    };
    json!({ "kernels": tried.iter().map(kernel).collect::<Vec<_>>() })
}
