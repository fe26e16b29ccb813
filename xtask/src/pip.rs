//! Runs pip with timeouts: without a registry it fails within seconds, and it always terminates.
//!
//! The user's configuration may let pip wait silently for minutes, several times. So a short probe checks first
//! whether a registry answers. After that the user's own limits apply to each request, and a deadline to the whole.

pub(crate) mod uv;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::workspace::step;

/// Limits of the probe: for each silence, and on further attempts.
const PROBE_LIMITS: [&str; 4] = ["--timeout", "15", "--retries", "1"];

/// Two attempts, and what pip itself takes to start.
const PROBE_DEADLINE: Duration = Duration::from_secs(45);

/// Some 300 MB in 150 packages: a minute and a half of a processor, which compilers share.
const INSTALL_DEADLINE: Duration = Duration::from_mins(15);

/// Between two lines that say that it is still running.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(20);

const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Fails unless a registry, or a folder that the user's configuration names, offers this requirement.
///
/// # Errors
/// With the last line that pip wrote.
pub(crate) fn probe(python: &Path, requirement: &str) -> Result<()> {
    let mut command = pip(python);
    command.args(PROBE_LIMITS).args(["--dry-run", "--no-deps", "--ignore-installed", requirement]);
    finish(command, PROBE_DEADLINE)
}

/// Installs packages; says now and then that it is still at it.
///
/// # Errors
/// With the last line that pip wrote, which it also shows whole.
pub(crate) fn install<S: AsRef<OsStr>>(python: &Path, arguments: impl IntoIterator<Item = S>) -> Result<()> {
    let mut command = pip(python);
    command.args(arguments);
    finish(command, INSTALL_DEADLINE)
}

fn pip(python: &Path) -> Command {
    let mut command = Command::new(python);
    // Modules are compiled when they are first imported.
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-compile"]);
    command
}

/// Waits for the program and shows what it wrote if it fails. The error has the last line of that, or the deadline.
fn finish(mut command: Command, limit: Duration) -> Result<()> {
    // A file: a pipe would stay open in programs that pip has started and that outlive it.
    let log = tempfile::NamedTempFile::new().context("no temporary file")?;
    let output = |file: &File| file.try_clone().map(Stdio::from);
    command.stdin(Stdio::null()).stdout(output(log.as_file())?).stderr(output(log.as_file())?);
    let mut child = command.spawn().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let ended = wait(&mut child, limit)?;
    let text = String::from_utf8_lossy(&fs::read(log.path())?).into_owned();
    match ended {
        Some(status) if status.success() => Ok(()),
        ended => {
            eprint!("{text}");
            match ended {
                None => bail!("not done after {} s", limit.as_secs()),
                Some(status) => bail!("{}", last_line(&text).unwrap_or(&format!("failed: {status}"))),
            }
        }
    }
}

/// The end of the process, or none when it did not end in time and was killed.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let begun = Instant::now();
    let mut told = Duration::ZERO;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let elapsed = begun.elapsed();
        if elapsed >= limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        if elapsed >= told + PROGRESS_INTERVAL {
            told = elapsed;
            step(&format!("still downloading and installing ({} s)", elapsed.as_secs()));
        }
        thread::sleep(POLL_INTERVAL);
    }
}

fn last_line(text: &str) -> Option<&str> {
    text.lines().map(str::trim).rfind(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn last_line_is_the_reason() {
        let error = finish(shell("echo WARNING; echo 'ERROR: no match' >&2; echo; exit 1"), INSTALL_DEADLINE);
        assert_eq!(error.unwrap_err().to_string(), "ERROR: no match");
        assert!(finish(shell("exit 1"), INSTALL_DEADLINE).unwrap_err().to_string().starts_with("failed: exit"));
        assert!(finish(shell("true"), INSTALL_DEADLINE).is_ok());
    }

    #[test]
    fn silence_ends_at_the_deadline() {
        let error = finish(shell("exec sleep 1000"), Duration::from_secs(1)).unwrap_err();
        assert_eq!(error.to_string(), "not done after 1 s");
    }
}
