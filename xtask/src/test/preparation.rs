//! What the tests need: missing packages, the Python environment, the program under test, the tests themselves.
//!
//! Most of it waits for downloads, and the last step of an optimized build takes minutes on one processor. So it all runs at the same
//! time as far as it can, and beside it the unit tests and, at the lowest priority, the builds for the parts behind the suites.

use std::path::PathBuf;
use std::thread;

use anyhow::Result;

use super::parts::{LaterParts, OTHER_PARTS};
use super::{Args, Attempt, SUITES, TestEnv, UNIT_TESTS};
use crate::dist::Dist;
use crate::musl::Site;
use crate::workspace::{self, build_release, cargo, joined, step};
use crate::{dist, host, venv};

/// What is ready for the suites.
pub(super) struct Prepared {
    pub(super) env: TestEnv,
    /// The first run of the unit tests.
    pub(super) unit: Attempt,
    /// What the parts behind the suites need.
    pub(super) later: LaterParts,
}

impl Args {
    /// Installs, builds and makes all of it, and runs the unit tests.
    pub(super) fn prepare(&self, skip_file: PathBuf, flaky_file: PathBuf) -> Result<Prepared> {
        thread::scope(|scope| {
            let tests = scope.spawn(build_tests);
            if self.all {
                // Shown now: the end of the other thread is waited for.
                host::install_missing().inspect_err(|error| step(&format!("{error:#}")))?;
            }
            let build = scope.spawn(|| self.build());
            let python = self.python()?;
            let mut env = TestEnv { krunner: None, python, dist: None, skip_file, flaky_file, all: self.all };
            let later = LaterParts::start(self);
            joined(tests);
            step("unit tests");
            let unit = env.run(cargo(UNIT_TESTS).arg("--").args(self.skips_and_filters()))?;
            match joined(build)? {
                Build::Artifacts(dist) => {
                    env.krunner = Some(dist.native()?.to_owned());
                    env.dist = Some(dist);
                }
                Build::Program(path) => env.krunner = Some(path),
            }
            Ok(Prepared { env, unit, later })
        })
    }

    /// Builds the program under test.
    fn build(&self) -> Result<Build> {
        Ok(if !self.all {
            Build::Program(build_release("krunner")?)
        } else if self.is_for_other_parts() {
            Build::Program(Site::here()?.build_native()?)
        } else {
            step("dist of this processor");
            Build::Artifacts(dist::make_native()?)
        })
    }

    /// The Python environment, or the reason why there is none.
    fn python(&self) -> Result<Result<PathBuf, String>> {
        Ok(if self.all {
            Ok(venv::ensure()?)
        } else if self.is_for_other_parts() {
            venv::existing()?.ok_or_else(|| "no Python environment: this part does not need one".to_owned())
        } else {
            venv::ensure_without_root()?
        })
    }

    /// Whether the filters select only parts that need neither Python nor the release artifacts.
    pub(super) fn is_for_other_parts(&self) -> bool {
        let is_other = |filter: &String| {
            OTHER_PARTS.iter().any(|(part, alias)| part.contains(filter.as_str()) || alias.contains(filter.as_str()))
        };
        !self.selection.filters.is_empty() && self.selection.filters.iter().all(is_other)
    }
}

/// Builds what the unit tests and the suites run. These build it again if this fails, and report it: a compiler
/// may have been replaced meanwhile by another of the packages that are missing.
fn build_tests() {
    step("building the tests");
    for tests in [&UNIT_TESTS[..], &SUITES] {
        if let Err(error) = workspace::run(cargo(tests).args(["--no-run", "--quiet"])) {
            step(&format!("{error:#}; it is tried again later"));
        }
    }
}

/// What `cargo xtask test` tests.
enum Build {
    /// With --all: what is handed out.
    Artifacts(Dist),
    Program(PathBuf),
}
