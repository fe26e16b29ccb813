//! `cargo xtask test`: runs every check of the workspace.
//!
//! The order is the unit tests of all packages, tidy, the integration suites against the release binary, then the OOM matrix on
//! this machine. With `--all`, the program under test is the static binary of the release artifacts, which suites test too; the
//! OOM matrix runs on other kernels, and dependencies are audited. `--engines` adds containers of real engines, `--newcomer` the
//! tests in a fresh clone. A failed part does not stop the next one; the end of the output summarizes all of them.
//!
//! The suites wait more than they compute. Hence they run on more threads than there are processors, and with `--all`, what the
//! parts behind them need is built before and beside them, at the lowest priority.

mod parts;
mod preparation;
mod sanitize;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result};
use krunner_tests::flaky;

use self::parts::LaterParts;
use self::preparation::Prepared;
use self::sanitize::Sanitizer;
use crate::dist::Dist;
use crate::musl::{Arch, Site};
use crate::summary::{Check, Summary};
use crate::workspace::{build_binary, cargo, joined, named, root, step};
use crate::{dist, tidy, venv};

const HELP: &str = "\
First creates the Python environment that tests need in target/venv, without root, from python3.11 and packages that \
pip downloads. A test whose requirements are missing on this machine (a program, root, the Python environment) skips \
itself; the end of the output lists skipped tests with the reason. A failed test runs once more, alone; if it passes, it \
counts as passed and is listed as flaky. --all installs missing requirements first: \
Debian packages, and kernels for virtual machines.

Environment:
  KRUNNER_VENV         use this Python environment unchanged instead of target/venv
  KRUNNER_ADVISORY_DB  a clone of the RustSec advisory database; without it, only yanked versions are found

The suites run on two threads per processor; RUST_TEST_THREADS sets another number.

Tests read KRUNNER_BIN (the release binary), KRUNNER_TEST_PYTHON (or KRUNNER_TEST_NO_PYTHON, the reason why there is no \
Python environment), KRUNNER_SKIP_FILE (where skipped tests write their reason), KRUNNER_FLAKY_FILE (where tests write \
why they repeat an attempt) and, with --all, \
KRUNNER_DIST (the output of `cargo xtask dist` for this processor) and KRUNNER_TEST_ALL=1.

Examples:
  cargo xtask test
  cargo xtask test --all
  cargo xtask test conformance::
  cargo xtask test survival:: report_order::
  cargo xtask test --all vm
  cargo xtask test --sanitize address
  cargo xtask test --all --engines --newcomer
  cargo xtask test --without oom_ --without survival::

Exit codes: 0 success, 1 a test or check failed or could not run, 2 wrong usage.";

/// Threads per processor for the suites, which use a quarter of a processor per thread.
const SUITE_THREADS: usize = 2;

/// Arguments of cargo that run the unit tests. The package with the suites runs separately, so that they run once. krunner-ebpf has
/// another target.
const UNIT_TESTS: [&str; 7] =
    ["test", "--no-fail-fast", "--workspace", "--exclude", "krunner-ebpf", "--exclude", "krunner-tests"];

/// Arguments of cargo that run the suites.
const SUITES: [&str; 4] = ["test", "--no-fail-fast", "--package", "krunner-tests"];

/// If more tests fail, it is not for the load of this machine.
const MAX_RETRIED: usize = 10;

/// Arguments of `cargo xtask test`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Install missing requirements, and fail if a test is skipped
    #[arg(long)]
    all: bool,
    /// Instead, run the unit tests and the suites of whole sessions, built with a sanitizer
    #[arg(long, value_name = "SANITIZER", conflicts_with = "all")]
    sanitize: Option<Sanitizer>,
    /// With --all: also run the OOM matrix on arm64, and krunner in containers of real engines, in virtual machines (`cargo
    /// xtask vm --node`)
    #[arg(long, requires = "all")]
    engines: bool,
    /// With --all: also run the tests as in a fresh clone on a fresh machine (`cargo xtask newcomer`), but for OOM kills
    #[arg(long, requires = "all")]
    newcomer: bool,
    #[command(flatten)]
    selection: Selection,
}

/// Which tests to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Selection {
    /// Do not run tests whose name contains NAME; may be given several times
    #[arg(long = "without", value_name = "NAME")]
    without: Vec<String>,
    /// Run only tests whose name contains one of these
    filters: Vec<String>,
}

impl Selection {
    /// Everything but what has one of these in its name.
    pub(crate) fn all_without(names: &[&str]) -> Self {
        Self { without: names.iter().map(|name| (*name).to_owned()).collect(), filters: Vec::new() }
    }

    /// Whether the command line selects nothing.
    pub(crate) const fn is_everything(&self) -> bool {
        self.without.is_empty() && self.filters.is_empty()
    }

    /// As arguments of a program that takes names to run, and `option` before each name to leave out.
    pub(crate) fn arguments<'a>(&'a self, option: &'a str) -> impl Iterator<Item = &'a str> {
        let without = self.without.iter().flat_map(move |name| [option, name.as_str()]);
        without.chain(self.filters.iter().map(String::as_str))
    }
}

/// What tests read from their environment variables.
struct TestEnv {
    /// The program under test, once it is built.
    krunner: Option<PathBuf>,
    /// `Err` has the reason why there is no Python environment.
    python: Result<PathBuf, String>,
    /// The artifacts that the suites use.
    dist: Option<Dist>,
    skip_file: PathBuf,
    flaky_file: PathBuf,
    all: bool,
}

/// Runs all parts. Returns `false` when one failed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    if let Some(sanitizer) = args.sanitize {
        return sanitizer.test(&args.selection);
    }
    let mut times = Times::new();
    let scratch = tempfile::tempdir().context("no temporary folder")?;
    let (skip_file, flaky_file) = (scratch.path().join("skips"), scratch.path().join("retries"));
    for file in [&skip_file, &flaky_file] {
        fs::write(file, "")?;
    }
    let Prepared { env, unit, later } = args.prepare(skip_file, flaky_file)?;
    times.ended("preparation and unit tests");
    if let Err(reason) = &env.python {
        step(&format!("skipping tests that need Python: {reason}"));
    }
    let mut problems = Vec::new();
    step("tidy");
    if !tidy::check_workspace(&root())? {
        problems.push("tidy found problems (see above)".to_owned());
    }
    let mut summary = Summary::default();
    if !args.all && !args.is_for_other_parts() {
        let skipped = dist::skipped("takes minutes to build: run `cargo xtask dist --check`, or pass --all");
        for check in &skipped {
            summary.check(check);
        }
    }
    if !env.retry(unit, || cargo(UNIT_TESTS), &mut summary)? {
        problems.push("the unit tests failed".to_owned());
    }
    args.run_suites(&env, later, &mut summary, &mut problems)?;
    times.ended("suites");

    // After the suites, because load on the machine distorts what these measure.
    for (what, checks) in args.run_other_parts(&env) {
        match checks {
            Ok(checks) => checks.iter().for_each(|check| summary.check(check)),
            Err(error) => problems.push(format!("{what}: {error:#}")),
        }
    }
    times.ended("other parts");

    summary.read_skips(&fs::read_to_string(&env.skip_file)?);
    summary.read_retries(&fs::read_to_string(&env.flaky_file)?);
    // Those of the parts that run in this process.
    for retry in flaky::take() {
        summary.retried(&retry);
    }
    if summary.is_empty() {
        problems.push(match args.selection.filters.join("`, `") {
            none if none.is_empty() => "no test ran".to_owned(),
            filters => format!("no test name contains `{filters}`"),
        });
    }
    if args.all && summary.skipped() > 0 {
        problems.push("tests were skipped, which is a failure with --all".to_owned());
    }
    print_summary(&summary, &problems, &times);
    Ok(problems.is_empty() && !summary.has_failures())
}

impl Args {
    /// Builds the program that scenarios of the OOM matrix kill.
    fn build_victim(&self) -> Result<PathBuf> {
        if self.all {
            Site::here()?.build_test_program("victim", Arch::native()?)
        } else {
            build_binary("krunner-tests", "victim")
        }
    }

    /// `later`: what the parts behind the suites need, which is being built meanwhile.
    fn run_suites(
        &self,
        env: &TestEnv,
        later: LaterParts,
        summary: &mut Summary,
        problems: &mut Vec<String>,
    ) -> Result<()> {
        step("integration suites");
        let suites = || with_threads(cargo(SUITES));
        // The retries come when nothing else runs.
        let (first, conformance, prepared) = thread::scope(|scope| {
            let later = scope.spawn(|| later.finish(env.dist.as_ref()));
            let first = env.run(suites().arg("--").args(self.skips_and_filters()));
            let conformance = self.run_conformance(env, summary);
            (first, conformance, joined(later))
        });
        if !env.retry(first?, suites, summary)? {
            problems.push("the integration suites failed".to_owned());
        }
        if let Some(first) = conformance?
            && !env.retry(first, || later_conformance(env), summary)?
        {
            problems.push("the conformance suites failed with the client of agent 23.9.10".to_owned());
        }
        for (what, checks) in prepared {
            match checks {
                Ok(checks) => checks.iter().for_each(|check| summary.check(check)),
                Err(error) => problems.push(format!("{what}: {error:#}")),
            }
        }
        Ok(())
    }

    /// Runs the suites of the contract with the client of a later agent; `None` if there is none, or the filters exclude them.
    fn run_conformance(&self, env: &TestEnv, summary: &mut Summary) -> Result<Option<Attempt>> {
        let Some(filters) = self.conformance_filters() else { return Ok(None) };
        step("conformance suites with the client of agent 23.9.10");
        let missing = match &env.python {
            Ok(python) if venv::later_agent(python).is_dir() => {
                return env.run(later_conformance(env).arg("--").args(&filters)).map(Some);
            }
            Ok(python) => format!("no {}", venv::later_agent(python).display()),
            Err(reason) => reason.clone(),
        };
        summary.check(&without_later_agent(missing));
        Ok(None)
    }

    /// The selection as arguments of test binaries.
    fn skips_and_filters(&self) -> Vec<&str> {
        self.selection.arguments("--skip").collect()
    }

    /// Whether the filters select a part that `cargo test` does not run, by one of its names, and leave it out by none.
    fn wants(&self, names: &[&str]) -> bool {
        let is_in_name = |part: &String| names.iter().any(|name| name.contains(part.as_str()));
        (self.selection.filters.is_empty() || self.selection.filters.iter().any(is_in_name))
            && !self.selection.without.iter().any(is_in_name)
    }

    /// The filters for the conformance suites; `None` if the filters exclude them.
    fn conformance_filters(&self) -> Option<Vec<String>> {
        const ALL: &str = "conformance_";
        if self.selection.filters.is_empty() {
            return Some(vec![ALL.to_owned()]);
        }
        let wanted: Vec<_> = self.selection.filters.iter().filter(|filter| filter.starts_with(ALL)).cloned().collect();
        (!wanted.is_empty()).then_some(wanted)
    }
}

/// Lets the test binaries run on [`SUITE_THREADS`], unless the caller has set a number.
fn with_threads(mut command: Command) -> Command {
    if std::env::var_os("RUST_TEST_THREADS").is_none() {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        command.env("RUST_TEST_THREADS", (SUITE_THREADS * processors).to_string());
    }
    command
}

/// The suites with the client of a later agent.
fn later_conformance(env: &TestEnv) -> Command {
    let mut command = with_threads(cargo(SUITES));
    if let Ok(python) = &env.python {
        command.env("KRUNNER_TEST_AGENT_PACKAGES", venv::later_agent(python));
    }
    command
}

fn without_later_agent(reason: String) -> Check {
    Check { name: "conformance with the client of agent 23.9.10".to_owned(), outcome: Err(reason) }
}

/// The outcome of one `cargo test`.
struct Attempt {
    summary: Summary,
    has_succeeded: bool,
}

impl TestEnv {
    fn program(&self) -> Result<&Path> {
        self.krunner.as_deref().context("the program under test is not built")
    }

    /// Runs each failed test once more, one at a time: what passes only alone is counted as flaky.
    fn retry(&self, first: Attempt, command: impl Fn() -> Command, summary: &mut Summary) -> Result<bool> {
        let Attempt { summary: mut part, has_succeeded } = first;
        let failed = part.failures().to_vec();
        if has_succeeded || failed.is_empty() || failed.len() > MAX_RETRIED {
            summary.add(part);
            return Ok(has_succeeded);
        }
        step(&format!("{} failed tests again, one at a time", failed.len()));
        let again = self.run(command().args(["--", "--exact", "--test-threads=1"]).args(&failed))?;
        part.recover(&again.summary);
        let has_recovered = part.failures().is_empty();
        summary.add(part);
        Ok(has_recovered)
    }

    /// Runs `cargo test`, forwards its output and counts the tests in it.
    fn run(&self, command: &mut Command) -> Result<Attempt> {
        command.env("KRUNNER_SKIP_FILE", &self.skip_file).env("KRUNNER_FLAKY_FILE", &self.flaky_file);
        for variable in
            ["KRUNNER_BIN", "KRUNNER_TEST_PYTHON", "KRUNNER_TEST_NO_PYTHON", "KRUNNER_DIST", "KRUNNER_TEST_ALL"]
        {
            command.env_remove(variable);
        }
        if let Some(krunner) = &self.krunner {
            command.env("KRUNNER_BIN", krunner);
        }
        if let Some(dist) = &self.dist {
            command.env("KRUNNER_DIST", dist.folder());
        }
        match &self.python {
            Ok(python) => command.env("KRUNNER_TEST_PYTHON", python),
            Err(reason) => command.env("KRUNNER_TEST_NO_PYTHON", reason),
        };
        if self.all {
            command.env("KRUNNER_TEST_ALL", "1");
        }
        let mut summary = Summary::default();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
        for line in BufReader::new(child.stdout.take().context("no output")?).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            summary.read_line(&line);
        }
        let status = child.wait().with_context(|| format!("cannot wait for {}", named(command)))?;
        Ok(Attempt { summary, has_succeeded: status.success() })
    }
}

/// How long the parts of a run took, one after the other.
struct Times {
    since: Instant,
    parts: Vec<String>,
}

impl Times {
    fn new() -> Self {
        Self { since: Instant::now(), parts: Vec::new() }
    }

    /// Takes the time since the part before.
    fn ended(&mut self, part: &str) {
        self.parts.push(format!("{part} {} s", self.since.elapsed().as_secs()));
        self.since = Instant::now();
    }
}

/// Prints skipped tests with their reasons, retries, times, failures, and the line that CI parses. A CI may show only the end.
fn print_summary(summary: &Summary, problems: &[String], times: &Times) {
    println!();
    print!("{}", summary.skip_list());
    print!("{}", summary.retry_list());
    println!("took: {}", times.parts.join(", "));
    print!("{}", summary.failure_list());
    for problem in problems {
        println!("problem: {problem}");
    }
    println!("{}", summary.closing_line());
}
