//! `cargo xtask newcomer`: runs the tests as in a fresh clone on a fresh machine.
//!
//! HEAD is cloned into a temporary folder, and `cargo xtask test` runs in it with a new home, no environment variables but those of
//! the package clients, and a PATH with the Rust toolchain, Python, a C compiler and a shell's usual programs. Only
//! downloads are shared with the caller (the registry in Cargo's home, pip's cache), which are the same on every machine.
//! Everything is compiled and the Python environment created as on a fresh machine.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::summary::Check;
use crate::test::Selection;
use crate::venv;
use crate::workspace::{QUICK_BUILD, find_on_path, printed, root, run, step, target_dir};

const HELP: &str = "\
Clones HEAD into a temporary folder and runs `cargo xtask test` there as on a fresh machine: a new home, only the \
environment variables of package clients (PIP_*, CARGO_HTTP_*, proxies, certificates), and a PATH with the Rust \
toolchain, python3.11, a C compiler, sh, grep, sed and the coreutils. Uncommitted changes are not tested.

Fails unless it exits with 0 and skips no test whose name starts with `conformance`. The full output is in \
target/newcomer.log. To save time, the release binary is built without LTO, and nothing has debug information.

Examples:
  cargo xtask newcomer
  cargo xtask newcomer conformance
  cargo xtask newcomer --without oom_

Exit codes: 0 success, 1 a test failed or could not run, 2 wrong usage.";

/// Arguments of `cargo xtask newcomer`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    selection: Selection,
}

/// The C compiler and what it and Rust's build scripts call. The first one is required.
const COMPILER: &[&str] = &["cc", "gcc", "as", "ld", "collect2", "ar", "ranlib", "nm"];

/// A shell and what scripts commonly use: coreutils, grep, sed. The first one is required.
const SHELL: &[&str] = &[
    "sh",
    "[",
    "b2sum",
    "base64",
    "basename",
    "cat",
    "chgrp",
    "chmod",
    "chown",
    "cksum",
    "comm",
    "cp",
    "cut",
    "date",
    "dd",
    "df",
    "dirname",
    "du",
    "echo",
    "env",
    "expand",
    "expr",
    "false",
    "fold",
    "grep",
    "head",
    "id",
    "install",
    "join",
    "kill",
    "link",
    "ln",
    "ls",
    "md5sum",
    "mkdir",
    "mkfifo",
    "mknod",
    "mktemp",
    "mv",
    "nice",
    "nl",
    "nohup",
    "nproc",
    "od",
    "paste",
    "printenv",
    "printf",
    "pwd",
    "readlink",
    "realpath",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "sha1sum",
    "sha256sum",
    "sha512sum",
    "shuf",
    "sleep",
    "sort",
    "split",
    "stat",
    "stdbuf",
    "stty",
    "sum",
    "sync",
    "tac",
    "tail",
    "tee",
    "test",
    "timeout",
    "touch",
    "tr",
    "true",
    "truncate",
    "tsort",
    "tty",
    "uname",
    "unexpand",
    "uniq",
    "unlink",
    "wc",
    "whoami",
    "yes",
];

/// Prefixes, in upper case, of variables with which package clients reach their registries.
const KEPT: &[&str] = &[
    "PIP_",
    "CARGO_HTTP_",
    "CARGO_NET_",
    "CARGO_REGISTRIES_",
    "CARGO_REGISTRY_",
    "CARGO_SOURCE_",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "SSL_CERT_",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
];

/// The tests that must not be skipped, because they check the contract with the agent.
const CONTRACT: &str = "conformance";

/// The number of lines of a failed run that are printed.
const SHOWN_LINES: usize = 60;

/// Tests that need nothing that a fresh machine lacks, and most of the time. They are left out where all tests run as well.
const LEFT_OUT: &[&str] = &["oom_", "survival::", "report_order::", "oom-matrix"];

/// Runs the task. Returns `false` if a test failed or a required test did not run.
pub(crate) fn run_task(args: &Args) -> Result<bool> {
    Ok(problems(&args.selection)?.is_empty())
}

/// The same as part of `cargo xtask test`.
pub(crate) fn test() -> Result<Vec<Check>> {
    let outcome = Ok(problems(&Selection::all_without(LEFT_OUT))?);
    Ok(vec![Check { name: "newcomer".to_owned(), outcome }])
}

/// Prints and returns what does not work in a fresh clone.
fn problems(selection: &Selection) -> Result<Vec<String>> {
    let begun = Instant::now();
    let log = target_dir()?.join("newcomer.log");
    let machine = FreshMachine::new()?;
    let succeeded = machine.test(selection, &log)?;
    let text = fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let seen = Seen::in_output(&text);
    let mut problems = seen.problems();
    if !succeeded {
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].iter().for_each(|line| println!("| {line}"));
        problems.push(format!("`cargo xtask test` failed in a fresh clone; the full output is in {}", log.display()));
    }
    for problem in &problems {
        println!("problem: {problem}");
    }
    // Not in the words of the closing line of `cargo xtask test`, which CI looks for.
    let verdict = if problems.is_empty() { "a fresh clone works" } else { "a fresh clone does not work" };
    let minutes = begun.elapsed().as_secs_f64() / 60.0;
    println!("newcomer: {verdict}; {} tests of {CONTRACT} ran, {minutes:.1} min", seen.contract_ran);
    Ok(problems)
}

/// What the output of `cargo xtask test` says of the tests that must not be skipped.
#[derive(Debug, PartialEq, Eq)]
struct Seen<'a> {
    contract_ran: usize,
    /// With the reasons.
    contract_skipped: Vec<(&'a str, &'a str)>,
}

impl<'a> Seen<'a> {
    /// Tests come as `test NAME ... ok`, skips at the end: a reason, and below it, further to the right, names.
    fn in_output(text: &'a str) -> Self {
        let is_contract = |name: &str| name.starts_with(CONTRACT);
        let names = text.lines().filter_map(|line| line.strip_prefix("test "));
        let started = names.filter(|name| is_contract(name)).count();
        let mut reason = "";
        let mut contract_skipped = Vec::new();
        for line in text.lines().skip_while(|line| *line != "skipped:") {
            match line.strip_prefix("    ") {
                Some(name) if is_contract(name) => contract_skipped.push((name, reason)),
                Some(_) => {}
                None => reason = line.trim(),
            }
        }
        Self { contract_ran: started.saturating_sub(contract_skipped.len()), contract_skipped }
    }

    fn problems(&self) -> Vec<String> {
        let skipped = self.contract_skipped.iter().map(|(name, reason)| format!("{name} was skipped: {reason}"));
        let none = (self.contract_ran == 0).then(|| format!("no test of {CONTRACT} ran"));
        skipped.chain(none).collect()
    }
}

/// A folder that simulates a fresh machine: `clone`, `home`, `bin`.
struct FreshMachine {
    folder: TempDir,
    path: OsString,
}

impl FreshMachine {
    fn new() -> Result<Self> {
        let folder = TempDir::with_prefix("krunner-newcomer-").context("no temporary folder")?;
        let (bin, home) = (folder.path().join("bin"), folder.path().join("home"));
        for folder in [&bin, &home.join(".cargo")] {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        provide_programs(&bin)?;
        share_downloads(&home)?;
        step("git clone");
        run(Command::new("git").args(["clone", "--quiet"]).arg(root()).arg(folder.path().join("clone")))?;
        let path = std::env::join_paths([bin, toolchain()?])?;
        Ok(Self { folder, path })
    }

    /// Runs the tests; says which part they are at. Whether they succeeded.
    fn test(&self, selection: &Selection, log: &Path) -> Result<bool> {
        let mut command = Command::new(toolchain()?.join("cargo"));
        command
            .args(["xtask", "test"])
            .args(selection.arguments("--without"))
            .current_dir(self.folder.path().join("clone"));
        command.env_clear().envs(kept_variables()).env("HOME", self.folder.path().join("home")).env("PATH", &self.path);
        command.envs(QUICK_BUILD.iter().copied());
        if let Some(cache) = pip_cache() {
            command.env("PIP_CACHE_DIR", cache);
        }
        let file = || File::options().create(true).append(true).open(log);
        let _ = fs::remove_file(log);
        let mut copy = file().with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file()?);
        step("cargo xtask test, with the programs and variables of a fresh machine");
        let mut child = command.spawn().context("cannot run cargo")?;
        for line in BufReader::new(child.stdout.take().context("no output")?).split(b'\n') {
            let mut line = line?;
            line.push(b'\n');
            copy.write_all(&line)?;
            if line.starts_with(b"==> ") {
                print!("| {}", String::from_utf8_lossy(&line));
            }
        }
        Ok(child.wait().context("cannot wait for cargo")?.success())
    }
}

/// Links to programs of this machine. Python is called by its own path, since it finds its library from there.
fn provide_programs(bin: &Path) -> Result<()> {
    for name in COMPILER.iter().chain(SHELL) {
        match find_on_path(name) {
            Some(program) => symlink(&program, bin.join(name))?,
            None if *name == COMPILER[0] || *name == SHELL[0] => bail!("no {name} on this machine"),
            None => {}
        }
    }
    let python = venv::interpreter_path()?;
    for name in ["python3", "python3.11"] {
        let script = bin.join(name);
        fs::write(&script, format!("#!/bin/sh\nexec {} \"$@\"\n", python.display()))?;
        fs::set_permissions(&script, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Downloads of crates, and where Cargo is told to get them from, are the caller's.
fn share_downloads(home: &Path) -> Result<()> {
    let ours = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| own_home().map(|home| home.join(".cargo")));
    for name in ["registry", "config.toml"] {
        if let Some(shared) = ours.as_ref().map(|folder| folder.join(name)).filter(|path| path.exists()) {
            symlink(shared, home.join(".cargo").join(name))?;
        }
    }
    Ok(())
}

/// pip's cache of downloads, where it is by default.
fn pip_cache() -> Option<PathBuf> {
    let is_set = std::env::var_os("PIP_CACHE_DIR").is_some();
    own_home().map(|home| home.join(".cache/pip")).filter(|folder| !is_set && folder.is_dir())
}

fn own_home() -> Option<PathBuf> {
    std::env::var_os("HOME").map(PathBuf::from)
}

/// The folder of the toolchain's own programs: rustup's stand-ins look for it in the home.
fn toolchain() -> Result<PathBuf> {
    let told = printed(Command::new("rustc").args(["--print", "sysroot"]))?;
    Ok(Path::new(String::from_utf8(told)?.trim()).join("bin"))
}

fn kept_variables() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_kept))
}

fn is_kept(name: &str) -> bool {
    KEPT.iter().any(|kept| name.to_uppercase().starts_with(kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
test conformance_batch::a ... ok
test conformance_input::b ... ok
test oom::c ... ok

skipped:
  no runc on the PATH
    oom::c
  no gcc on the PATH
    conformance_input::b
    drawing::d
suites: 1 passed, 0 failed, 3 skipped
";

    #[test]
    fn skipped_contract_is_a_problem_with_its_reason() {
        let seen = Seen::in_output(OUTPUT);
        assert_eq!(seen.contract_ran, 1);
        assert_eq!(seen.problems(), ["conformance_input::b was skipped: no gcc on the PATH"]);
        let whole = OUTPUT.replace("    conformance_input::b\n", "");
        assert_eq!(Seen::in_output(&whole).problems(), [""; 0]);
    }

    #[test]
    fn no_test_of_the_contract_is_a_problem() {
        assert_eq!(Seen::in_output("test oom::c ... ok\nno skips\n").problems(), ["no test of conformance ran"]);
    }

    #[test]
    fn only_package_clients_keep_their_variables() {
        for kept in ["PIP_INDEX_URL", "https_proxy", "NO_PROXY", "CARGO_REGISTRIES_X_INDEX", "SSL_CERT_FILE"] {
            assert!(is_kept(kept), "{kept}");
        }
        for lost in ["CARGO", "CARGO_HOME", "CARGO_TARGET_DIR", "RUSTFLAGS", "KRUNNER_VENV", "HOME", "PATH"] {
            assert!(!is_kept(lost), "{lost}");
        }
    }
}
