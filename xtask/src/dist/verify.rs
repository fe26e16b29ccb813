//! Verifies the release artifacts: checksums, a second build elsewhere, and a start on the other processor.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result};
use krunner_tests::{Raw, Setup};
use serde_json::Value;
use tempfile::TempDir;

use super::sums::{self, sha256};
use crate::host::QEMU_AARCH64;
use crate::musl::{Arch, Site};
use crate::workspace::{root, tracked_files};

/// An emulated processor takes seconds to start a program.
const PATIENCE_SECONDS: &str = "120";

/// Runs `sha256sum -c` as a user would.
pub(super) fn sums(folder: &Path) -> Result<Vec<String>, String> {
    let arguments = ["--check", "--strict", "--quiet", sums::NAME].map(OsStr::new);
    let output = finished("sha256sum", &arguments, folder)?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(if output.status.success() { Vec::new() } else { vec![text.trim().to_owned()] })
}

/// Starts the aarch64 binary under qemu-user and runs what works there. The native binary provides the
/// expected output.
pub(super) fn runs(binary: &Path, native: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    let mut expect = |arguments: &[&str], judge: &dyn Fn(&Output) -> Result<(), String>| {
        let words: Vec<&OsStr> = [binary.as_os_str()].into_iter().chain(arguments.iter().map(OsStr::new)).collect();
        let judged = finished(QEMU_AARCH64, &words, Path::new("/")).and_then(|output| {
            judge(&output).map_err(|problem| format!("{problem}: {}", String::from_utf8_lossy(&output.stderr).trim()))
        });
        problems.extend(judged.err().map(|problem| format!("krunner {}: {problem}", arguments.join(" "))));
    };
    for arguments in [&["--version"][..], &["languages", "--json"]] {
        let words: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        let right = finished(&native.to_string_lossy(), &words, Path::new("/"));
        expect(arguments, &|output| match &right {
            Ok(right) if right.status.success() && right.stdout == output.stdout => Ok(()),
            _ => Err(format!("{:?} is not {right:?}", String::from_utf8_lossy(&output.stdout))),
        });
    }
    expect(&["doctor", "--json"], &|output| {
        // qemu-user has no bpf(2), so doctor must choose the fallback.
        let tracer = parsed(output)?["tracer"].clone();
        if tracer == "snapshot" { Ok(()) } else { Err(format!("the tracer is {tracer}")) }
    });
    // `timeout` sends SIGINT after 5 seconds, on which the monitor exits cleanly.
    let watch = ["--preserve-status", "--signal=INT", "5", QEMU_AARCH64].map(OsStr::new);
    let watch = [&watch[..], &[binary.as_os_str()], &["monitor", "--no-bpf", "--json"].map(OsStr::new)].concat();
    problems.extend(match finished("timeout", &watch, Path::new("/")) {
        Ok(output) if output.status.success() && parsed(&output).is_ok_and(|told| told["event"] == "watching") => None,
        outcome => Some(format!("krunner monitor: {outcome:?}")),
    });
    problems.extend(speaks(binary, native).err());
    problems
}

/// Sends an op to a session of the native binary. (A session under emulation needs `PR_SET_CHILD_SUBREAPER`, which
/// qemu-user 7.2 lacks.)
fn speaks(binary: &Path, native: &Path) -> Result<(), String> {
    let session = || {
        let runner = Setup::new("app").program(native).start();
        drop(Raw::connect(&runner));
        let (op_port, reply_port) = runner.ports();
        let line = ["send", "--in-port", &op_port.to_string(), "--out-port", &reply_port.to_string(), "exec"];
        let words = [binary.as_os_str()].into_iter().chain(line.into_iter().map(OsStr::new));
        let words: Vec<&OsStr> = words.chain([OsStr::new("echo $((6 * 7)); exit 3")]).collect();
        let output = finished(QEMU_AARCH64, &words, Path::new("/")).expect("qemu runs");
        assert_eq!((output.status.code(), output.stdout.starts_with(b"42\n")), (Some(3), true), "{output:?}");
    };
    // The harness panics on failure.
    catch_unwind(session).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        format!("krunner send: {}", text.unwrap_or_else(|| "a panic".to_owned()))
    })
}

fn parsed(output: &Output) -> Result<Value, String> {
    serde_json::from_slice(&output.stdout).map_err(|error| format!("{} and no JSON ({error})", output.status))
}

/// Runs a program with a timeout, after which it is killed.
fn finished(program: &str, arguments: &[&OsStr], folder: &Path) -> Result<Output, String> {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", PATIENCE_SECONDS, program]).args(arguments).current_dir(folder).stdin(Stdio::null());
    command.output().map_err(|error| format!("cannot run {program}: {error}"))
}

/// Another build site: a copy of the sources at a path of a different length, and another `CARGO_HOME`.
pub(super) struct Elsewhere {
    _folder: TempDir,
    site: Site,
}

impl Elsewhere {
    pub(super) fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("krunner-built-elsewhere-").tempdir()?;
        let here = Site::here()?;
        let place = |name: &str| folder.path().join(name);
        let site = Site { sources: place("sources"), cargo_home: place("home-of-cargo"), target_dir: place("target") };
        copy_sources(&site.sources)?;
        // Symlinks to the same files, so that nothing is fetched twice.
        fs::create_dir(&site.cargo_home)?;
        for entry in fs::read_dir(&here.cargo_home)? {
            let entry = entry?;
            symlink(entry.path(), site.cargo_home.join(entry.file_name()))?;
        }
        Ok(Self { _folder: folder, site })
    }

    /// Builds krunner there and returns the paths, which exist as long as `self`.
    pub(super) fn build(&self, archs: &[Arch]) -> Result<Vec<PathBuf>> {
        self.site.build(archs)
    }
}

/// Describes how a binary differs from one that was built elsewhere.
pub(super) fn differences(binary: &Path, rebuilt: &Path) -> Result<Vec<String>> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let (this, other) = (read(binary)?, read(rebuilt)?);
    if this == other {
        return Ok(Vec::new());
    }
    let first = this.iter().zip(&other).position(|(this, other)| this != other);
    Ok(vec![format!(
        "{} has {} bytes, SHA-256 {}; built elsewhere {} bytes, {}; the first byte that differs is {:?} \
         (`strings` may show a path that got in)",
        binary.display(),
        this.len(),
        sha256(&this),
        other.len(),
        sha256(&other),
        first
    )])
}

/// Copies every file that git tracks or would track, including uncommitted changes.
fn copy_sources(to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    for name in tracked_files(&root())?.iter().filter(|name| root().join(name).is_file()) {
        let target = to.join(name);
        fs::create_dir_all(target.parent().context("a file is in a folder")?)?;
        fs::copy(root().join(name), &target).with_context(|| format!("cannot copy {name}"))?;
    }
    Ok(())
}
