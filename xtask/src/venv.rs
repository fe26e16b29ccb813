//! The Python side of tests and bench: the reference runner, the agent's own client, and a Jupyter
//! kernel, in one virtual environment at `target/venv`.
//!
//! `KRUNNER_VENV` names another one, which is used as it is and never changed. Ours carries a stamp
//! with the list it was made from, written last: without it, or with another list in it, or when the
//! packages are not found in it, the environment is made anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::host;
use crate::workspace::{run, step, target_dir};

/// What is installed, and why.
const REQUIREMENTS: &[&str] = &[
    "backend.ai-kernel==23.3.8", // the runner that krunner replaces: reference and yardstick
    "backend.ai-agent==23.3.8",  // the client that must work unmodified
    "ipykernel",                 // a Jupyter kernel for query mode
    "notebook",                  // a Jupyter server, started as a service
    "moto[server,polly]",        // the Polly that `vendor.aws_polly` talks to
    "matplotlib",                // the commonest source of `media` replies
    "pandas",                    // the commonest source of `html` replies
];

/// What newer agents mount into containers: programs, which need no Python and stand apart from the older ones.
const NEWER: &str = "backend.ai-kernel-binary==26.9.6";

/// The folder of [`NEWER`] in the environment; suites look there.
const NEWER_FOLDER: &str = "newer";

/// The two Backend.AI packages accept this Python only.
const PYTHON: (u32, u32) = (3, 11);

/// Exits with 0 when each `name`, `name[extras]` or `name==version` of its arguments is installed and the one
/// compiled package that everything rests on loads.
const CHECK: &str = "\
import sys, zmq
from importlib import metadata
for requirement in sys.argv[1:]:
    name, _, wanted = requirement.partition('==')
    name, _, _ = name.partition('[')
    found = metadata.version(name)
    if wanted and found != wanted:
        sys.exit(f'{name} is {found}, not {wanted}')
";

const STAMP: &str = ".made-from";

/// The Python of a working environment, if there is one. Nothing is installed.
pub(crate) fn existing() -> Result<Option<PathBuf>> {
    if let Some(named) = named()? {
        return Ok(Some(named));
    }
    let folder = target_dir()?.join("venv");
    Ok(is_ours_and_works(&folder).then(|| python_of(&folder)))
}

/// The Python of a working environment, made first if need be.
pub(crate) fn ensure() -> Result<PathBuf> {
    if let Some(python) = existing()? {
        return Ok(python);
    }
    let folder = target_dir()?.join("venv");
    if folder.exists() {
        step(&format!("{} is stale or broken: making it anew", folder.display()));
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    if interpreter().is_none() {
        host::install(&["python3.11", "python3.11-venv"]).context("no Python 3.11 with venv on this machine")?;
    }
    let python = interpreter().context("python3.11 is installed, and still not found")?;
    step(&format!("making {} (about a minute): {}", folder.display(), REQUIREMENTS.join(" ")));
    run(Command::new(python).args(["-m", "venv"]).arg(&folder))?;
    let inside = python_of(&folder);
    run(Command::new(&inside)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(REQUIREMENTS))?;
    run(Command::new(&inside)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"])
        .args(["--ignore-requires-python", NEWER, "--target"])
        .arg(folder.join(NEWER_FOLDER)))?;
    check(&inside).with_context(|| format!("{} was made, and does not work", folder.display()))?;
    fs::write(folder.join(STAMP), stamp())?;
    Ok(inside)
}

/// The folder that a Python of ours belongs to.
pub(crate) fn folder_of(python: &Path) -> PathBuf {
    python.parent().and_then(Path::parent).unwrap_or(python).to_path_buf()
}

/// What `KRUNNER_VENV` names; an error when that does not work, since it was asked for.
fn named() -> Result<Option<PathBuf>> {
    let Some(folder) = std::env::var_os("KRUNNER_VENV").filter(|folder| !folder.is_empty()) else {
        return Ok(None);
    };
    let folder = std::path::absolute(PathBuf::from(folder))?;
    let python = python_of(&folder);
    check(&python).with_context(|| format!("KRUNNER_VENV names {}, which does not serve", folder.display()))?;
    Ok(Some(python))
}

fn python_of(folder: &Path) -> PathBuf {
    folder.join("bin/python")
}

fn stamp() -> String {
    format!("{REQUIREMENTS:?} {NEWER:?} {PYTHON:?}\n")
}

fn is_ours_and_works(folder: &Path) -> bool {
    fs::read_to_string(folder.join(STAMP)).is_ok_and(|found| found == stamp()) && check(&python_of(folder)).is_ok()
}

fn check(python: &Path) -> Result<()> {
    let output = Command::new(python).args(["-c", CHECK]).args(REQUIREMENTS).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {}", python.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}", said.lines().last().unwrap_or("python failed without a word"));
    }
    Ok(())
}

/// A Python of the right version that can make environments.
fn interpreter() -> Option<&'static str> {
    let probe = format!("import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != {PYTHON:?})");
    ["python3.11", "python3", "/usr/bin/python3.11", "python"].into_iter().find(|python| {
        let probed = Command::new(python).args(["-c", &probe]).stdin(Stdio::null()).stderr(Stdio::null()).status();
        probed.is_ok_and(|status| status.success())
    })
}
