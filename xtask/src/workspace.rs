//! Paths of the workspace, and functions to run other programs: they print one line that says what
//! runs, then the program's own output, and return its failure as an error.

use std::ffi::OsStr;
use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

/// The folder of the workspace's `Cargo.toml`.
///
/// `cargo run` sets the checkout that it was called in. The compiled-in path is for a binary that
/// is started directly.
pub(crate) fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&package).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Cargo's target folder, wherever its configuration puts it.
pub(crate) fn target_dir() -> Result<PathBuf> {
    #[derive(serde::Deserialize)]
    struct Metadata {
        target_directory: PathBuf,
    }
    let told = printed(&mut cargo(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Metadata = serde_json::from_slice(&told).context("unexpected output of cargo metadata")?;
    Ok(metadata.target_directory)
}

/// A command of the cargo that called us, in the workspace's root.
pub(crate) fn cargo<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// Builds the binary of `package` in release mode and returns its path.
pub(crate) fn build_release(package: &str) -> Result<PathBuf> {
    build_binary(package, package)
}

/// Variables that make builds faster, for a fresh machine in CI: the release binary is not optimized across crates, and nothing
/// has debug information.
pub(crate) const QUICK_BUILD: &[(&str, &str)] = &[
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ("CARGO_PROFILE_DEV_DEBUG", "0"),
];

/// Builds a binary in release mode and returns its path.
pub(crate) fn build_binary(package: &str, name: &str) -> Result<PathBuf> {
    step(&format!("building {name} (release)"));
    run(&mut cargo(["build", "--release", "--package", package, "--bin", name]))?;
    release_binary(name)
}

fn release_binary(name: &str) -> Result<PathBuf> {
    let binary = target_dir()?.join("release").join(name);
    if !binary.is_file() {
        bail!("cargo did not build {}", binary.display());
    }
    Ok(binary)
}

/// The platform that rustc compiles for by default.
pub(crate) fn host_triple() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let text = String::from_utf8(printed(Command::new(rustc).arg("-vV"))?).context("rustc's version is not UTF-8")?;
    let triple = text.lines().find_map(|line| line.strip_prefix("host: "));
    triple.map(str::to_owned).context("rustc does not name its host")
}

/// Lowers the priority of this thread, and of what it starts, to the least there is.
pub(crate) fn give_way() -> Result<()> {
    rustix::process::nice(19).map(drop).context("cannot lower the priority")
}

/// Waits for a thread. Its panic goes on in this one.
pub(crate) fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Prints a heading for the output that follows, with the time since the first one.
pub(crate) fn step(text: &str) {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    println!("==> {text} ({} s)", BEGAN.elapsed().as_secs());
}

/// Runs a program with its output on the terminal.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("cannot run {}", named(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", named(command));
    }
    Ok(())
}

/// Runs a program and returns its stdout. Its stderr goes to the terminal.
pub(crate) fn printed(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot run {}", named(command)))?;
    if !output.status.success() {
        bail!("{} failed: {}", named(command), output.status);
    }
    Ok(output.stdout)
}

/// The files that git tracks or would track, sorted. Without git: all files but build output.
pub(crate) fn tracked_files(root: &Path) -> Result<Vec<String>> {
    if !on_path("git") {
        return files_below(root);
    }
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root);
    let names = String::from_utf8(printed(&mut git)?).context("a file's name is not UTF-8")?;
    let mut names: Vec<String> = names.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

fn files_below(root: &Path) -> Result<Vec<String>> {
    let (mut names, mut folders) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let entry = entry?;
            let path = entry.path();
            if [".git", "target"].iter().any(|name| entry.file_name() == *name) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else {
                names.push(path.strip_prefix(root)?.to_str().context("a file's name is not UTF-8")?.to_owned());
            }
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The program of a command, for messages.
pub(crate) fn named(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    match command.get_args().next() {
        Some(first) => format!("{program} {}", first.to_string_lossy()),
        None => program,
    }
}

/// Whether a program of that name is on `PATH`.
pub(crate) fn on_path(program: &str) -> bool {
    find_on_path(program).is_some()
}

/// The program of that name on `PATH`.
pub(crate) fn find_on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_the_same_with_git_and_without() {
        if on_path("git") {
            // A file whose deletion is not committed is only in git's list.
            let mut by_git = tracked_files(&root()).unwrap();
            by_git.retain(|name| root().join(name).exists());
            assert_eq!(files_below(&root()).unwrap(), by_git);
        }
    }
}
