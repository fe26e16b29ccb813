//! A session with `CAP_SYS_RESOURCE` in a cgroup that is killed as a whole (`memory.oom.group`): the runner survives, and its
//! children have the rank that they would have had without krunner. Only a machine of our own has that capability.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use krunner_tests::wait;

const CGROUP: &str = "/sys/fs/cgroup/survivor";
const ROOT: &str = "/tmp/survivor";

/// Room for the loading of the tracer.
const LIMIT_BYTES: &str = "100663296";

/// More than that, in MiB.
const TOO_MUCH: &str = "200";

/// An emulated processor takes its time.
const PATIENCE: Duration = Duration::from_mins(1);

/// `Err` says what is not as it should be.
pub(crate) fn check() -> Result<(), String> {
    let mut runner = start().map_err(|error| format!("cannot start a session: {error}"))?;
    let checked = check_session(&mut runner);
    let _ = runner.kill();
    let _ = runner.wait();
    wait::within(PATIENCE, || fs::remove_dir(CGROUP).ok());
    checked
}

fn start() -> std::io::Result<Child> {
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    if !up.success() {
        return Err(std::io::Error::other("the loopback interface is not up"));
    }
    fs::create_dir(CGROUP)?;
    fs::write(Path::new(CGROUP).join("memory.max"), LIMIT_BYTES)?;
    fs::write(Path::new(CGROUP).join("memory.oom.group"), "1")?;
    for folder in ["home/work", "home/config", "tmp", "etc/backend.ai"] {
        fs::create_dir_all(Path::new(ROOT).join(folder))?;
    }
    let enter = format!("echo 0 > {CGROUP}/cgroup.procs; exec krunner --root {ROOT} app");
    let home = Path::new(ROOT).join("home/work");
    Command::new("sh").args(["-c", &enter]).current_dir(home).stdin(Stdio::null()).stdout(Stdio::null()).spawn()
}

fn check_session(runner: &mut Child) -> Result<(), String> {
    let answers = || send("status", "").is_ok();
    wait::within(PATIENCE, || answers().then_some(())).ok_or("the session never answered")?;
    let rank = |pid: &str| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap_or_default();
    let own = rank(&runner.id().to_string());
    if own.trim() != "-1000" {
        return Err(format!("the runner has oom_score_adj {own:?}"));
    }
    let said = send("exec", "cat /proc/self/oom_score_adj")?;
    if said.lines().next() != Some("0") {
        return Err(format!("a child's oom_score_adj: {said}"));
    }
    let said = send("exec", &format!("sleep 600 & exec victim eat {TOO_MUCH}"))?;
    let events = fs::read_to_string(Path::new(CGROUP).join("memory.events")).unwrap_or_default();
    if !events.lines().any(|line| line.starts_with("oom_kill ") && line != "oom_kill 0") {
        return Err(format!("nobody was killed: {events} {said}"));
    }
    if let Ok(Some(status)) = runner.try_wait() {
        return Err(format!("the runner ended: {status}; {events}"));
    }
    if !answers() {
        return Err("the session does not answer after the kill".to_owned());
    }
    let alive = send("exec", "echo alive")?;
    if alive.lines().next() == Some("alive") { Ok(()) } else { Err(format!("the next step: {alive}")) }
}

/// What `krunner send` prints; `Err` without an answer.
fn send(op: &str, payload: &str) -> Result<String, String> {
    let mut command = Command::new("krunner");
    command.args(["send", op]);
    if !payload.is_empty() {
        command.arg(payload);
    }
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("krunner send: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    // The exit code of a step is the command's own.
    if op == "exec" || output.status.success() { Ok(said) } else { Err(said) }
}
