//! `cargo xtask test --sanitize`: the unit tests, and suites that drive whole sessions, with a program that is built with a
//! sanitizer.
//!
//! Nearly all of krunner is safe Rust, so what a sanitizer can find is in its system calls and in the crates that it links. The
//! compiler asks for a nightly to build with one; `RUSTC_BOOTSTRAP` makes a stable one do it, whose runtime is the same. Suites
//! that measure memory or make it scarce are not for a program that needs several times as much.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::Selection;
use crate::venv;
use crate::workspace::{cargo, host_triple, run, step, target_dir};

/// The suites that run unless the command line names others.
const SUITES: [&str; 7] =
    ["conformance_", "delivery::", "interrupt::", "lifecycle::", "queue::", "reconnect::", "services::"];

/// A sanitizer of the compiler. The thread sanitizer also needs a standard library that is built with it.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Sanitizer {
    /// Invalid accesses to memory
    Address,
}

impl fmt::Display for Sanitizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address => f.write_str("address"),
        }
    }
}

impl Sanitizer {
    /// Runs the tests. Returns `false` when one failed or the sanitizer has reported something.
    pub(crate) fn test(self, selection: &Selection) -> Result<bool> {
        let build = SanitizedBuild::new(self)?;
        step(&format!("unit tests with the {self} sanitizer"));
        let unit = ["test", "--package", "krunner", "--package", "krunner-common", "--lib"];
        let mut has_passed = passes(build.cargo(&unit).arg("--").args(selection.arguments("--skip")))?;

        step(&format!("building krunner with the {self} sanitizer"));
        run(&mut build.cargo(&["build", "--package", "krunner"]))?;
        let suites = ["test", "--package", "krunner-tests", "--test", "suites", "--"];
        let mut suites = cargo(suites);
        suites.env("KRUNNER_BIN", build.program("krunner")).args(selection.arguments("--skip"));
        if selection.is_everything() {
            suites.args(SUITES);
        }
        match venv::ensure_without_root()? {
            Ok(python) => suites.env("KRUNNER_TEST_PYTHON", python),
            Err(reason) => suites.env("KRUNNER_TEST_NO_PYTHON", reason),
        };
        step(&format!("suites with the {self} sanitizer"));
        has_passed &= passes(suites.env("ASAN_OPTIONS", build.options()))?;
        let reports = build.reports()?;
        for report in &reports {
            println!("{}:\n{}", report.display(), fs::read_to_string(report).unwrap_or_default());
        }
        println!("the {self} sanitizer: {} reports; the tests {}", reports.len(), verdict(has_passed));
        Ok(has_passed && reports.is_empty())
    }
}

const fn verdict(has_passed: bool) -> &'static str {
    if has_passed { "passed" } else { "failed" }
}

/// Where the instrumented programs are, and where their reports go.
struct SanitizedBuild {
    sanitizer: Sanitizer,
    triple: String,
    target_dir: PathBuf,
    reports: PathBuf,
}

impl SanitizedBuild {
    fn new(sanitizer: Sanitizer) -> Result<Self> {
        let folder = target_dir()?.join("sanitize");
        let reports = folder.join("reports");
        if reports.exists() {
            fs::remove_dir_all(&reports).with_context(|| format!("cannot empty {}", reports.display()))?;
        }
        fs::create_dir_all(&reports).with_context(|| format!("cannot create {}", reports.display()))?;
        Ok(Self { sanitizer, triple: host_triple()?, target_dir: folder, reports })
    }

    /// A command of cargo for instrumented programs. With a target, build scripts and macros are not instrumented.
    fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = cargo(arguments);
        command.args(["--target", &self.triple]).env("CARGO_TARGET_DIR", &self.target_dir);
        command.env("RUSTC_BOOTSTRAP", "1").env("CARGO_PROFILE_DEV_DEBUG", "1").env_remove("RUSTFLAGS");
        command.env("CARGO_ENCODED_RUSTFLAGS", format!("-Zsanitizer={}", self.sanitizer));
        command.env("ASAN_OPTIONS", self.options());
        command
    }

    fn program(&self, name: &str) -> PathBuf {
        self.target_dir.join(&self.triple).join("debug").join(name)
    }

    /// Each process with something to report writes a file of its own. Without the search for leaks: a child that a test forks has
    /// the memory of threads that it does not have.
    fn options(&self) -> String {
        format!("log_path={}:detect_leaks=0", self.reports.join("report").display())
    }

    fn reports(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&self.reports).with_context(|| cannot_read(&self.reports))?;
        let mut reports = Vec::new();
        for entry in entries {
            reports.push(entry.with_context(|| cannot_read(&self.reports))?.path());
        }
        reports.sort_unstable();
        Ok(reports)
    }
}

/// Whether the command succeeds. It fails when a test fails.
fn passes(command: &mut Command) -> Result<bool> {
    let status = command.status().context("cannot run cargo")?;
    match status.code() {
        Some(code) => Ok(code == 0),
        None => bail!("cargo was stopped: {status}"),
    }
}

fn cannot_read(folder: &Path) -> String {
    format!("cannot read {}", folder.display())
}
