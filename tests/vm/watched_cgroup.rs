//! A krunner that prints events, and a cgroup in which a program is killed for its memory.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use krunner_tests::wait;
use serde_json::Value;

const LIMIT_BYTES: &str = "33554432";

/// Long because the processor is emulated: loading takes seconds there.
const PATIENCE: Duration = Duration::from_mins(1);

/// Both end when this is dropped.
pub(crate) struct WatchedCgroup {
    krunner: Child,
    cgroup: PathBuf,
    output: PathBuf,
}

impl WatchedCgroup {
    /// Starts `krunner ARGS` beside the cgroup, with its stdout in a file of this name.
    pub(crate) fn start(name: &str, args: &[&str]) -> std::io::Result<Self> {
        Self::start_with(name, "memory.max", LIMIT_BYTES, Command::new("krunner").args(args))
    }

    /// Starts `krunner ARGS` in the cgroup, whose `memory.high` this is.
    pub(crate) fn start_inside(name: &str, high_bytes: &str, args: &[&str]) -> std::io::Result<Self> {
        let krunner = format!("krunner {}", args.join(" "));
        Self::start_with(name, "memory.high", high_bytes, &mut inside(&path(name), &krunner))
    }

    fn start_with(name: &str, limit: &str, bytes: &str, krunner: &mut Command) -> std::io::Result<Self> {
        let cgroup = path(name);
        fs::create_dir(&cgroup)?;
        fs::write(cgroup.join(limit), bytes)?;
        let output = Path::new("/tmp").join(name);
        let krunner = krunner.stdin(Stdio::null()).stdout(File::create(&output)?).spawn()?;
        Ok(Self { krunner, cgroup, output })
    }

    /// Runs this command in the cgroup.
    pub(crate) fn inside(&self, command: &str) -> Command {
        inside(&self.cgroup, command)
    }

    /// Waits for an event while the program runs.
    pub(crate) fn event(&mut self, event: &str) -> Result<Value, String> {
        let found = wait::within(PATIENCE, || match self.krunner.try_wait() {
            Ok(None) => self.line(event).map(Ok),
            ended => Some(Err(format!("krunner ended: {ended:?}"))),
        });
        found.unwrap_or_else(|| Err(format!("no {event} within {} s", PATIENCE.as_secs())))
    }

    /// Runs this command in the cgroup, and waits for the report of a kill.
    pub(crate) fn kill(&mut self, command: &str) -> Result<Value, String> {
        let status = self.inside(command).stdin(Stdio::null()).status();
        let status = status.map_err(|error| format!("cannot start {command}: {error}"))?;
        self.event("oom_kill").map_err(|problem| format!("{problem}; {command} ended with {status}"))
    }

    /// The first line of the output that is this event.
    pub(crate) fn line(&self, event: &str) -> Option<Value> {
        let text = fs::read_to_string(&self.output).unwrap_or_default();
        let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.find(|line| line["event"] == event)
    }
}

fn path(name: &str) -> PathBuf {
    Path::new("/sys/fs/cgroup").join(name)
}

fn inside(cgroup: &Path, command: &str) -> Command {
    let cgroup = cgroup.display();
    let script = format!("echo 0 > /proc/self/oom_score_adj; echo 0 > {cgroup}/cgroup.procs; exec {command}");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]);
    shell
}

impl Drop for WatchedCgroup {
    fn drop(&mut self) {
        let _ = self.krunner.kill();
        let _ = self.krunner.wait();
        wait::within(PATIENCE, || fs::remove_dir(&self.cgroup).ok());
    }
}
