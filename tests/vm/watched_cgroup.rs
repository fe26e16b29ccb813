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
    /// Starts `krunner ARGS`, with its stdout in a file of this name.
    pub(crate) fn start(name: &str, args: &[&str]) -> std::io::Result<Self> {
        let cgroup = Path::new("/sys/fs/cgroup").join(name);
        fs::create_dir(&cgroup)?;
        fs::write(cgroup.join("memory.max"), LIMIT_BYTES)?;
        let output = Path::new("/tmp").join(name);
        let stdout = File::create(&output)?;
        let krunner = Command::new("krunner").args(args).stdin(Stdio::null()).stdout(stdout).spawn()?;
        Ok(Self { krunner, cgroup, output })
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
        let cgroup = self.cgroup.display();
        let script = format!("echo 0 > /proc/self/oom_score_adj; echo 0 > {cgroup}/cgroup.procs; exec {command}");
        let status = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).status();
        let status = status.map_err(|error| format!("cannot start {command}: {error}"))?;
        self.event("oom_kill").map_err(|problem| format!("{problem}; {command} ended with {status}"))
    }

    /// The first line of the output that is this event.
    fn line(&self, event: &str) -> Option<Value> {
        let text = fs::read_to_string(&self.output).unwrap_or_default();
        let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.find(|line| line["event"] == event)
    }
}

impl Drop for WatchedCgroup {
    fn drop(&mut self) {
        let _ = self.krunner.kill();
        let _ = self.krunner.wait();
        wait::within(PATIENCE, || fs::remove_dir(&self.cgroup).ok());
    }
}
