//! `cargo xtask test`: everything that says whether this tree works, once.
//!
//! Tidy, then the unit tests of all packages, then the integration suites against the release
//! binary, then the battery of kills for memory here and, with `--all`, on other kernels. With `--all` what is handed out is
//! made first, since suites try it, and others' licences are looked at. A part that fails does not stop the next one: the end
//! of the output tells all.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::musl::Arch;
use crate::tally::Tally;
use crate::workspace::{build_release, cargo, named, root, step};
use crate::{battery, dist, host, supply, tidy, venv, vm};

const HELP: &str = "\
The Python environment that tests need is made first, at target/venv: without root, from python3.11 and what pip \
downloads. A test that lacks something on this machine (a program, root, the Python environment) skips itself, \
and the end of the output lists it with its reason. With --all, what is missing is installed first: \
Debian packages and kernels for virtual machines.

Environment:
  KRUNNER_VENV         a Python environment to use as it is, in place of target/venv
  KRUNNER_ADVISORY_DB  a clone of the RustSec advisory database; without it, only withdrawn versions are looked for

Tests are told where things are by KRUNNER_BIN (the release binary), KRUNNER_TEST_PYTHON (or, without a \
Python environment, KRUNNER_TEST_NO_PYTHON: the reason), KRUNNER_SKIP_FILE (where to say what was skipped) and, with --all, \
KRUNNER_DIST (what `cargo xtask dist` makes) and KRUNNER_TEST_ALL=1.

Examples:
  cargo xtask test
  cargo xtask test --all
  cargo xtask test conformance::
  cargo xtask test survival:: report_order::
  cargo xtask test --all vm

Exit codes: 0 nothing failed, 1 a test or a check failed or could not run, 2 wrong usage.";

/// Arguments of `cargo xtask test`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Install what is missing, and count a skipped test as a failure
    #[arg(long)]
    all: bool,
    /// Run only tests with one of these in their names
    filters: Vec<String>,
}

/// What tests find in their environment.
struct World {
    krunner: PathBuf,
    /// Or the reason why there is none.
    python: Result<PathBuf, String>,
    dist: Option<PathBuf>,
    skip_file: PathBuf,
    all: bool,
}

/// Runs everything; `false` when something failed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let python = if args.all {
        host::install_missing()?;
        Ok(venv::ensure()?)
    } else if args.is_for_others() {
        venv::existing()?.ok_or_else(|| "no Python environment: not made for this part".to_owned())
    } else {
        venv::ensure_without_root()?
    };
    if let Err(reason) = &python {
        step(&format!("tests that need Python are skipped: {reason}"));
    }
    let mut problems = Vec::new();
    step("tidy");
    if !tidy::check_workspace(&root())? {
        problems.push("tidy has complaints (above)".to_owned());
    }

    let scratch = tempfile::tempdir().context("no temporary folder")?;
    let skip_file = scratch.path().join("skips");
    fs::write(&skip_file, "")?;
    let mut tally = Tally::default();
    let krunner = build_release("krunner")?;
    let dist = args.make_dist(&mut tally, &mut problems);
    let world = World { krunner, python, dist, skip_file, all: args.all };
    // The suites' package runs on its own, so that they run once; krunner-ebpf is for another target.
    let unit = ["test", "--no-fail-fast", "--workspace", "--exclude", "krunner-ebpf", "--exclude", "krunner-tests"];
    let suites = ["test", "--no-fail-fast", "--package", "krunner-tests"];
    for (what, arguments) in [("unit tests", &unit[..]), ("integration suites", &suites[..])] {
        step(what);
        let mut command = cargo(arguments);
        command.arg("--").args(&args.filters);
        if !world.run(&mut command, &mut tally)? {
            problems.push(format!("the {what} failed"));
        }
    }

    // After the suites: what these measure suffers from others who are at work.
    for what in ["battery", "vm", "supply"] {
        if !args.wants(what) {
            continue;
        }
        step(what);
        let checks = match what {
            "battery" => battery::test(&world.krunner),
            "vm" if args.all => vm::test(),
            "vm" => Ok(vm::skipped("minutes of emulation: `cargo xtask vm`, or --all")),
            _ if args.all => supply::test(),
            _ => Ok(supply::skipped("cargo-deny may have to be installed: --all")),
        };
        match checks {
            Ok(checks) => checks.iter().for_each(|check| tally.check(check)),
            Err(error) => problems.push(format!("{what}: {error:#}")),
        }
    }

    tally.read_skips(&fs::read_to_string(&world.skip_file)?);
    if tally.is_empty() {
        problems.push(match args.filters.join("`, `") {
            none if none.is_empty() => "no test ran".to_owned(),
            filters => format!("no test has `{filters}` in its name"),
        });
    }
    if args.all && tally.skipped() > 0 {
        problems.push("a skip is a failure with --all".to_owned());
    }
    close(&tally, &problems);
    Ok(problems.is_empty())
}

impl Args {
    /// Whether the filter lets a part through that is no test of cargo's.
    fn wants(&self, part: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| part.contains(filter.as_str()))
    }

    /// Whether only a part is wanted that needs neither Python nor what is handed out.
    fn is_for_others(&self) -> bool {
        let is_other = |filter: &String| ["battery", "vm", "supply"].iter().any(|part| part.contains(filter.as_str()));
        !self.filters.is_empty() && self.filters.iter().all(is_other)
    }

    /// What is handed out, for the suites to try, unless only another part is wanted.
    fn make_dist(&self, tally: &mut Tally, problems: &mut Vec<String>) -> Option<PathBuf> {
        if self.is_for_others() {
            return None;
        }
        if !self.all {
            for check in dist::skipped("minutes of building: `cargo xtask dist --check`, or --all") {
                tally.check(&check);
            }
            return None;
        }
        step("dist");
        // One of them is built twice: the other differs in its instructions only.
        let made = dist::make(&Arch::ALL).and_then(|made| {
            for check in made.checks(&[Arch::X86_64])? {
                tally.check(&check);
            }
            Ok(made.folder().to_owned())
        });
        made.map_err(|error| problems.push(format!("dist: {error:#}"))).ok()
    }
}

impl World {
    /// Runs `cargo test`, shows its output as it comes and counts along.
    fn run(&self, command: &mut Command, tally: &mut Tally) -> Result<bool> {
        command.env("KRUNNER_BIN", &self.krunner).env("KRUNNER_SKIP_FILE", &self.skip_file);
        for told in ["KRUNNER_TEST_PYTHON", "KRUNNER_TEST_NO_PYTHON", "KRUNNER_DIST", "KRUNNER_TEST_ALL"] {
            command.env_remove(told);
        }
        if let Some(dist) = &self.dist {
            command.env("KRUNNER_DIST", dist);
        }
        match &self.python {
            Ok(python) => command.env("KRUNNER_TEST_PYTHON", python),
            Err(reason) => command.env("KRUNNER_TEST_NO_PYTHON", reason),
        };
        if self.all {
            command.env("KRUNNER_TEST_ALL", "1");
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
        for line in BufReader::new(child.stdout.take().context("no output")?).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            tally.read_line(&line);
        }
        Ok(child.wait().with_context(|| format!("{} got lost", named(command)))?.success())
    }
}

/// The end of the output: failures, skips with their reasons, and the line that CI reads.
fn close(tally: &Tally, problems: &[String]) {
    println!();
    print!("{}", tally.failure_list());
    for problem in problems {
        println!("problem: {problem}");
    }
    print!("{}", tally.skip_list());
    println!("{}", tally.closing_line());
}
