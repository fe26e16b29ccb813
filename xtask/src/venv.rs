//! The Python side of tests and bench: the reference runner, the agent's own client, and a Jupyter
//! kernel, in one virtual environment at `target/venv`, which needs no root.
//!
//! `KRUNNER_VENV` names another one, which is used as is and never changed. Ours has a stamp file
//! with its requirements, which is written last and removed first. If the stamp is missing or different, or if the
//! packages are not found, the environment is recreated. A lock file keeps two runs from creating it at the same time.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::host;
use crate::pip::{self, uv};
use crate::workspace::{printed, run, step, target_dir};

/// What is installed, and why.
const REQUIREMENTS: &[&str] = &[
    "backend.ai-kernel==23.3.8", // the runner that krunner replaces: the reference and the bench's baseline
    "backend.ai-agent==23.3.8",  // the client that must work unmodified
    "ipykernel",                 // a Jupyter kernel for query mode
    "notebook",                  // a Jupyter server, started as a service
    "kubernetes-validate",       // the published schemas of Kubernetes' objects
    "moto[server,polly]",        // the Polly that `vendor.aws_polly` talks to
    "matplotlib",                // the commonest source of `media` replies
    "pex",                       // packs an agent into one file, as upstream delivers it
    "pandas",                    // the commonest source of `html` replies
];

/// Packages that stand apart from the older ones of the same names, each set in a folder of the environment where suites look
/// for it. What they depend on is that of the older ones.
const BESIDE: [(&str, &[&str]); 2] = [
    // The programs that newer agents mount into containers.
    ("newer", &["backend.ai-kernel-binary==26.9.6"]),
    // Another release of the agent, whose client the conformance suites are run with as well; and the runner that it came with,
    // whose templates are the reference.
    (
        LATER_AGENT,
        &[
            "backend.ai-agent==23.9.10",
            "backend.ai-common==23.9.10",
            "backend.ai-kernel==23.9.10",
            "backend.ai-plugin==23.9.10",
            "backend.ai-cli==23.9.10",
        ],
    ),
];

/// The folder of the later agent's packages, for `PYTHONPATH`.
const LATER_AGENT: &str = "agent-23.9.10";

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

/// Compiles what a Jupyter kernel imports. The user of a container may not write here, and would compile it at each start.
const KERNEL: &str = "import ipykernel.kernelapp";

const STAMP: &str = ".made-from";

const NO_INTERPRETER: &str = "no python3.11 with venv on this machine";

/// The Python of a working environment, if there is one.
pub(crate) fn existing() -> Result<Option<PathBuf>> {
    if let Some(named) = named()? {
        return Ok(Some(named));
    }
    let folder = target_dir()?.join("venv");
    Ok(is_ours_and_works(&folder).then(|| python_of(&folder)))
}

/// The Python of a working environment, made first if need be. Python itself is installed, too.
pub(crate) fn ensure() -> Result<PathBuf> {
    if let Some(python) = existing()? {
        return Ok(python);
    }
    if interpreter().is_none() {
        host::install(&["python3.11", "python3.11-venv"]).context(NO_INTERPRETER)?;
    }
    make(interpreter().context("python3.11 is installed, and still not found")?)
}

/// The same with what is on this machine, or the reason why there is none. An environment that `KRUNNER_VENV` names and
/// that does not work is an error.
pub(crate) fn ensure_without_root() -> Result<Result<PathBuf, String>> {
    if let Some(python) = existing()? {
        return Ok(Ok(python));
    }
    let made = interpreter().context(NO_INTERPRETER).and_then(make);
    Ok(made.map_err(|error| format!("no Python environment: {error:#}")))
}

/// Makes ours anew, or returns that of another process that made it meanwhile.
fn make(interpreter: &str) -> Result<PathBuf> {
    let target = target_dir()?;
    let folder = target.join("venv");
    fs::create_dir_all(&target).with_context(|| format!("cannot create {}", target.display()))?;
    let lock = File::create(target.join("venv.lock")).context("cannot create target/venv.lock")?;
    lock.lock().context("cannot lock target/venv.lock")?;
    if is_ours_and_works(&folder) {
        return Ok(python_of(&folder));
    }
    if folder.exists() {
        step(&format!("{} is stale or broken: making it anew", folder.display()));
        remove(&folder)?;
    }
    step(&format!("making {} (half a minute): {}", folder.display(), REQUIREMENTS.join(" ")));
    let made = fill(&folder, interpreter);
    if made.is_err() {
        remove(&folder)?;
    }
    made
}

fn fill(folder: &Path, interpreter: &str) -> Result<PathBuf> {
    run(Command::new(interpreter).args(["-m", "venv"]).arg(folder))?;
    let inside = python_of(folder);
    pip::probe(&inside, REQUIREMENTS[0])?;
    uv::install(&inside, REQUIREMENTS).or_else(|error| {
        step(&format!("uv: {error:#}; pip installs instead, which takes minutes"));
        pip::install(&inside, REQUIREMENTS)
    })?;
    for (name, requirements) in BESIDE {
        let target = folder.join(name);
        let options = ["--no-deps", "--ignore-requires-python", "--target"].map(OsStr::new).into_iter();
        pip::install(&inside, options.chain([target.as_os_str()]).chain(requirements.iter().map(OsStr::new)))?;
    }
    check(&inside).with_context(|| format!("{} was made, and does not work", folder.display()))?;
    run(Command::new(&inside).args(["-c", KERNEL]))?;
    fs::write(folder.join(STAMP), stamp())?;
    Ok(inside)
}

/// Removes an environment. The stamp goes first: what an interrupted removal leaves is not taken for a whole one.
fn remove(folder: &Path) -> Result<()> {
    let _ = fs::remove_file(folder.join(STAMP));
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

/// The folder that a Python of ours belongs to.
pub(crate) fn folder_of(python: &Path) -> PathBuf {
    python.parent().and_then(Path::parent).unwrap_or(python).to_path_buf()
}

/// Where the packages of the agent 23.9.10 are, beside that Python's own; `KRUNNER_VENV` may name an environment without them.
pub(crate) fn later_agent(python: &Path) -> PathBuf {
    folder_of(python).join(LATER_AGENT)
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
    format!("{REQUIREMENTS:?} {BESIDE:?} {PYTHON:?}\n")
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

/// The file of that Python: the names on PATH may be scripts that look for it (pyenv's shims).
pub(crate) fn interpreter_path() -> Result<PathBuf> {
    let name = interpreter().context(NO_INTERPRETER)?;
    let told = printed(Command::new(name).args(["-c", "import sys; print(sys.executable)"]))?;
    Ok(PathBuf::from(String::from_utf8(told)?.trim()))
}

/// A Python of the right version that can make environments.
fn interpreter() -> Option<&'static str> {
    let probe = format!("import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != {PYTHON:?})");
    ["python3.11", "python3", "/usr/bin/python3.11", "python"].into_iter().find(|python| {
        let probed = Command::new(python).args(["-c", &probe]).stdin(Stdio::null()).stderr(Stdio::null()).status();
        probed.is_ok_and(|status| status.success())
    })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn half_made_environment_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let python = python_of(folder.path());
        fs::create_dir_all(python.parent().unwrap()).unwrap();
        let write_python = |script: &str| {
            fs::write(&python, script).unwrap();
            fs::set_permissions(&python, Permissions::from_mode(0o755)).unwrap();
        };
        let is_good = || is_ours_and_works(folder.path());

        write_python("#!/bin/sh\n");
        assert!(!is_good(), "without a stamp");
        fs::write(folder.path().join(STAMP), "another list").unwrap();
        assert!(!is_good(), "with another stamp");
        fs::write(folder.path().join(STAMP), stamp()).unwrap();
        assert!(is_good());
        write_python("#!/bin/sh\nexit 1\n");
        assert!(!is_good(), "with packages missing");

        remove(folder.path()).unwrap();
        remove(folder.path()).unwrap();
        assert!(!folder.path().exists());
    }
}
