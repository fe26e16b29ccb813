//! Checks what a test needs from the machine, and records a test as skipped if it is missing.

use std::env;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Unwraps something the host should have. When it has not, the test is skipped: on stderr, in the file that
/// `KRUNNER_SKIP_FILE` names, and not at all under `KRUNNER_TEST_ALL=1`, where it fails instead.
#[macro_export]
macro_rules! require {
    ($needed:expr) => {{
        fn here() {}
        match $needed {
            Ok(found) => found,
            Err(reason) => {
                $crate::host::skip(std::any::type_name_of_val(&here), &reason);
                return;
            }
        }
    }};
}

/// Records that a test cannot run here. Use it through [`require!`](crate::require).
pub fn skip(function: &str, reason: &str) {
    // `suites::module::test::here`: the binary and the marker function say nothing.
    let test = function.trim_end_matches("::here");
    let test = test.split_once("::").map_or(test, |(_, rest)| rest);
    assert!(env::var_os("KRUNNER_TEST_ALL").is_none_or(|value| value != "1"), "{test} must run here, but: {reason}");
    eprintln!("SKIPPED {test}: {reason}");
    if let Some(path) = env::var_os("KRUNNER_SKIP_FILE") {
        let line = format!("{test}\t{reason}\n");
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        written.unwrap_or_else(|error| panic!("cannot append to {}: {error}", path.display()));
    }
}

/// A program on the PATH.
pub fn program(name: &str) -> Result<PathBuf, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| format!("no {name} on the PATH"))
}

/// A C compiler.
pub fn c_compiler() -> Result<PathBuf, String> {
    program("gcc").or_else(|_| program("cc")).map_err(|_| "no gcc and no cc on the PATH".to_owned())
}

/// The compiler of the toolchain that these tests were built with: Debian's is older, and rustup's proxies look for their
/// files in the home folder.
pub fn rustc() -> Result<PathBuf, String> {
    let compiler = Path::new(env!("CARGO")).with_file_name("rustc");
    if compiler.is_file() { Ok(compiler) } else { Err(format!("no {}", compiler.display())) }
}

/// The interpreter of the venv that holds the agent's packages.
pub fn agent_python() -> Result<PathBuf, String> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    FOUND.get_or_init(find_agent_python).clone()
}

fn find_agent_python() -> Result<PathBuf, String> {
    let python = env::var_os("KRUNNER_TEST_PYTHON").map(PathBuf::from);
    let python = python.ok_or_else(|| {
        // `cargo xtask test` knows why there is none.
        let reason = env::var("KRUNNER_TEST_NO_PYTHON").ok();
        reason.unwrap_or_else(|| "KRUNNER_TEST_PYTHON is not set: no Python with backend.ai-agent".to_owned())
    })?;
    let import = Command::new(&python)
        .args(["-c", "import ai.backend.agent.kernel"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run {}: {error}", python.display()))?;
    if !import.status.success() {
        let python = python.display();
        return Err(format!("{python} cannot import ai.backend.agent"));
    }
    Ok(python)
}

/// The same interpreter, with a Jupyter kernel that has pandas and matplotlib.
pub fn jupyter_python() -> Result<PathBuf, String> {
    agent_python_with("ipykernel, pandas, matplotlib")
}

/// The folder of the environment that a Python belongs to.
pub fn folder_of(python: &Path) -> PathBuf {
    python.parent().and_then(Path::parent).unwrap_or(python).to_path_buf()
}

/// R with its Jupyter kernel.
pub fn r_with_kernel() -> Result<PathBuf, String> {
    let r = program("R")?;
    let library = PathBuf::from("/usr/lib/R/site-library/IRkernel/DESCRIPTION");
    if library.is_file() { Ok(r) } else { Err("no IRkernel for R".to_owned()) }
}

/// The same interpreter, if it has that module as well.
pub fn agent_python_with(module: &str) -> Result<PathBuf, String> {
    let python = agent_python()?;
    let import = Command::new(&python).args(["-c", &format!("import {module}")]).stdin(Stdio::null()).output();
    let imported = import.is_ok_and(|output| output.status.success());
    if imported { Ok(python) } else { Err(format!("{} cannot import {module}", python.display())) }
}

/// The folder of a package that the agent's own brings along.
fn agent_package(name: &str) -> Result<PathBuf, String> {
    let python = agent_python()?;
    let code = format!("import {name}; print({name}.__path__[0], end='')");
    let output = Command::new(&python)
        .args(["-c", &code])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run {}: {error}", python.display()))?;
    if output.status.success() {
        Ok(PathBuf::from(OsString::from_vec(output.stdout)))
    } else {
        Err(format!("{} has no {name}", python.display()))
    }
}

/// The programs that agents of 23.3 mount into containers: dropbear, tmux and their like.
pub fn runner_programs() -> Result<PathBuf, String> {
    agent_package("ai.backend.runner")
}

/// The `/opt/backend.ai` volume's package, which has the volume's ttyd as a file of its own.
pub fn volume_package() -> Result<PathBuf, String> {
    agent_package("ai.backend.krunner.static_gnu")
}

/// The `/opt/backend.ai` volume, unpacked below that folder, as the agent does it, unless it is there.
pub fn volume(below: &Path) -> Result<PathBuf, String> {
    static UNPACKED: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    UNPACKED.get_or_init(|| unpack_volume(below)).clone()
}

fn unpack_volume(below: &Path) -> Result<PathBuf, String> {
    let archive = volume_package()?.join("krunner-env.static-gnu.x86_64.tar.xz");
    let folder = below.join("volume");
    if folder.is_dir() {
        return Ok(folder);
    }
    let draft = folder.with_extension(std::process::id().to_string());
    std::fs::create_dir_all(&draft).map_err(|error| format!("{}: {error}", draft.display()))?;
    let mut unpack = Command::new("tar");
    let output = unpack.arg("-xJf").arg(&archive).arg("-C").arg(&draft).stdin(Stdio::null()).output();
    match output {
        // Another process may have been first.
        Ok(output) if output.status.success() => std::fs::rename(&draft, &folder)
            .or_else(|error| if folder.is_dir() { std::fs::remove_dir_all(&draft) } else { Err(error) })
            .map_err(|error| format!("{}: {error}", folder.display()))
            .map(|()| folder),
        Ok(output) => Err(format!("{}: {}", archive.display(), String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("cannot run tar: {error}")),
    }
}

/// What `cargo xtask dist` has made.
pub fn dist() -> Result<PathBuf, String> {
    let folder = env::var_os("KRUNNER_DIST").map(PathBuf::from);
    folder.ok_or_else(|| "KRUNNER_DIST is not set: there is nothing of `cargo xtask dist` to test".to_owned())
}

/// A folder that `cargo xtask test` puts beside the packages of the environment.
fn beside(folder: &str) -> Result<PathBuf, String> {
    let folder = folder_of(&agent_python()?).join(folder);
    if folder.is_dir() { Ok(folder) } else { Err(format!("there is no {}", folder.display())) }
}

/// The programs that agents of 26.9 mount into containers.
pub fn newer_runner_programs() -> Result<PathBuf, String> {
    beside("newer/ai/backend/runner")
}

/// The Python runner of 23.9.10, for the interpreter of the agent's packages.
pub fn later_python_runner() -> Result<PathBuf, String> {
    beside("agent-23.9.10")
}

/// An interpreter for user code: the system's, as in an image, else the venv's.
pub fn user_python() -> Result<PathBuf, String> {
    let system = PathBuf::from("/usr/bin/python3");
    if system.is_file() { Ok(system) } else { agent_python() }
}

/// The interpreter of the venv, with a Jupyter server in it.
pub fn notebook_python() -> Result<PathBuf, String> {
    let python = agent_python()?;
    let found = Command::new(&python).args(["-c", "import notebook"]).stdin(Stdio::null()).output();
    match found {
        Ok(output) if output.status.success() => Ok(python),
        _ => Err(format!("{} has no notebook", python.display())),
    }
}

/// The right to become another user, which permission checks need to be seen.
pub fn root() -> Result<(), String> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err("needs root to start the runner as another user".to_owned())
    }
}

/// The programs that start others elsewhere: in namespaces of their own, or as another user.
pub fn util_linux() -> Result<(), String> {
    ["mount", "nsenter", "setpriv", "unshare"].into_iter().try_for_each(|name| program(name).map(drop))
}

/// Network namespaces of our own with a working loopback, and the way into them.
pub fn network_namespaces() -> Result<(), String> {
    let tried = Command::new("unshare")
        .args(["--net", "sh", "-c", "ip link set lo up && nsenter --target $$ --net true"])
        .stdin(Stdio::null())
        .output();
    match tried {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("no network namespaces: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("no network namespaces: {error}")),
    }
}
