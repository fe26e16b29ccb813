//! Checks that `krunner node`, which loads eBPF programs of its own, is ready on this kernel and confirms a kill in a PID namespace.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use krunner_tests::wait;
use serde_json::Value;

const CGROUP: &str = "/sys/fs/cgroup/node-check";
const OUTPUT: &str = "/tmp/node-check";

const LIMIT_BYTES: &str = "33554432";

/// Long because the processor is emulated: loading takes seconds there.
const PATIENCE: Duration = Duration::from_mins(1);

/// `Err` describes what is missing.
pub(crate) fn check() -> Result<(), String> {
    let mut node = start().map_err(|error| format!("cannot start a node: {error}"))?;
    let seen = check_kill(&mut node);
    let _ = node.kill();
    let _ = node.wait();
    wait::within(PATIENCE, || fs::remove_dir(CGROUP).ok());
    seen
}

fn start() -> std::io::Result<Child> {
    fs::create_dir(CGROUP)?;
    fs::write(Path::new(CGROUP).join("memory.max"), LIMIT_BYTES)?;
    let mut command = Command::new("krunner");
    command
        .args(["node", "--socket", "/tmp/node-check.sock"])
        .stdin(Stdio::null())
        .stdout(File::create(OUTPUT)?)
        .spawn()
}

fn check_kill(node: &mut Child) -> Result<(), String> {
    let ready = wait::within(PATIENCE, || match node.try_wait() {
        Ok(None) => line("node_started").map(|_| Ok(())),
        ended => Some(Err(format!("the node ended: {ended:?}"))),
    });
    ready.ok_or("the node is not ready within a minute")??;
    let hog = format!("echo 0 > {CGROUP}/cgroup.procs; exec unshare -p -f victim eat 200");
    let status = Command::new("sh").args(["-c", &hog]).stdin(Stdio::null()).status();
    let status = status.map_err(|error| format!("cannot start a hog: {error}"))?;
    let report = wait::within(PATIENCE, || line("oom_kill"));
    let report = report.ok_or_else(|| format!("no report of a kill; the hog's parent ended with {status}"))?;
    let is_right = report["confidence"] == "confirmed" && report["victim"]["name"] == "victim";
    if is_right { Ok(()) } else { Err(format!("the report of the kill: {report}")) }
}

/// The first line of the node's output that is this event.
fn line(event: &str) -> Option<Value> {
    let text = fs::read_to_string(OUTPUT).unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.find(|line| line["event"] == event)
}
