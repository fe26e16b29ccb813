//! Runs a program with a deadline. Its output goes to files: a daemon that it leaves behind may keep a pipe open forever.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::process::{Command, Stdio};
use std::time::Duration;

use krunner_tests::wait;

/// Emulation is slow, and a first call reads the program from the disk.
const DEADLINE: Duration = Duration::from_secs(150);

/// A program with arguments.
pub(crate) fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

/// Runs the program and returns its stdout.
///
/// # Errors
/// If it cannot start, fails or misses the deadline. The error has its output.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let (code, stdout, stderr) = outcome(command)?;
    if code == Some(0) { Ok(stdout) } else { Err(format!("{}: code {code:?}: {stderr}{stdout}", shown(command))) }
}

/// Runs the program and returns its exit code (`None` after a signal), stdout and stderr.
pub(crate) fn outcome(command: &mut Command) -> Result<(Option<i32>, String, String), String> {
    let failed = |error: std::io::Error| error.to_string();
    let mut files = [tempfile::tempfile().map_err(failed)?, tempfile::tempfile().map_err(failed)?];
    let [stdout, stderr] = files.each_ref().map(File::try_clone);
    command.stdin(Stdio::null()).stdout(stdout.map_err(failed)?).stderr(stderr.map_err(failed)?);
    let mut child = command.spawn().map_err(|error| format!("{}: {error}", shown(command)))?;
    let status = wait::within(DEADLINE, || child.try_wait().ok().flatten());
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let [stdout, stderr] = files.each_mut().map(read);
    match status {
        Some(status) => Ok((status.code(), stdout, stderr)),
        None => Err(format!("{}: not done within {} s: {stderr}{stdout}", shown(command), DEADLINE.as_secs())),
    }
}

/// A file that a program of the machine writes.
pub(crate) fn write(path: &str, content: &str) -> Result<(), String> {
    fs::write(path, content).map_err(|error| format!("{path}: {error}"))
}

fn read(file: &mut File) -> String {
    let mut bytes = Vec::new();
    let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
