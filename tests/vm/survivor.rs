//! Checks that a runner survives OOM kills in its cgroup under cgroup v2, which the machine that runs the suites may not have.
//!
//! With `CAP_SYS_RESOURCE` the runner survives a group kill (`memory.oom.group`), and its children have the `oom_score_adj` that
//! they would have without krunner. Without the capability it survives one kill after the other. Without either, a group kill
//! ends it and its recording says why. Sessions run with `--debug`, so that each kernel loads the eBPF programs that log.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use krunner_tests::flaky::Retry;
use krunner_tests::{proc, wait};
use serde_json::Value;

const CGROUP: &str = "/sys/fs/cgroup/survivor";
const ROOT: &str = "/tmp/survivor";

/// Number 24 of linux/capability.h.
const CAP_SYS_RESOURCE: &str = "24";

/// Leaves enough memory to load the tracer.
const LIMIT_BYTES: &str = "100663296";

/// MiB; more than the limit.
const TOO_MUCH: &str = "200";

/// Attempts, of which the last one counts.
const ATTEMPTS: usize = 3;

/// Long because the processor is emulated.
const PATIENCE: Duration = Duration::from_mins(1);

/// What the session is allowed to do and how its cgroup is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Privilege {
    /// It protects itself, in a cgroup that is killed as a whole.
    Protected,
    /// It cannot protect itself in such a cgroup: the runner is killed, and a recording remains.
    Recorded,
    Bpf,
    Fallback,
}

impl Privilege {
    fn is_group(self) -> bool {
        matches!(self, Self::Protected | Self::Recorded)
    }
}

/// Steps that end in an OOM kill and leave little memory in use.
const KILLED: &[&str] =
    &["exec victim eat 200", "victim clone-vm 200", "sleep 60 & victim clone-vm 200; kill $!", "exec victim eat 200"];

/// `Err` describes the first check that failed.
pub(crate) fn check() -> Result<(), String> {
    // Before 5.11 creating the maps takes CAP_SYS_RESOURCE, to raise the limit of locked memory.
    in_session(Privilege::Protected, check_program_log)?;
    in_session(Privilege::Protected, check_group_kill)?;
    in_session(Privilege::Recorded, check_post_mortem)?;
    for privilege in [Privilege::Bpf, Privilege::Fallback] {
        // An emulated processor frees memory ten times as slowly, and processes whose allocation failed just before the kill
        // retry meanwhile. Here one kill in twenty also takes the runner.
        let mut attempt = 1;
        while let Err(problem) = in_session(privilege, check_kills) {
            if attempt == ATTEMPTS {
                return Err(problem);
            }
            Retry::new(format!("survivor::{privilege:?}"), &problem, attempt, ATTEMPTS).record();
            attempt += 1;
        }
    }
    Ok(())
}

/// Starts a session, runs the check in it, and kills it.
fn in_session(privilege: Privilege, check: impl FnOnce(&mut Child) -> Result<(), String>) -> Result<(), String> {
    let mut runner = start(privilege).map_err(|error| format!("cannot start a session: {error}"))?;
    let answered = wait::within(PATIENCE, || send("status", "").is_ok().then_some(()));
    let checked = answered.ok_or_else(|| "the session never answered".to_owned()).and_then(|()| check(&mut runner));
    let _ = runner.kill();
    let _ = runner.wait();
    wait::within(PATIENCE, || fs::remove_dir(CGROUP).ok());
    checked
}

fn start(privilege: Privilege) -> std::io::Result<Child> {
    fs::create_dir(CGROUP)?;
    fs::write(Path::new(CGROUP).join("memory.max"), LIMIT_BYTES)?;
    fs::write(Path::new(CGROUP).join("memory.oom.group"), if privilege.is_group() { "1" } else { "0" })?;
    for folder in ["home/work", "home/config", "tmp", "etc/backend.ai"] {
        fs::create_dir_all(Path::new(ROOT).join(folder))?;
    }
    if privilege == Privilege::Recorded {
        fs::create_dir_all(Path::new(ROOT).join("home/work/.logs"))?;
    }
    let enter = format!("echo 0 > {CGROUP}/cgroup.procs; exec krunner --debug --root {ROOT} app");
    let home = Path::new(ROOT).join("home/work");
    let launcher: &[&str] = match privilege {
        Privilege::Protected => &[],
        Privilege::Bpf | Privilege::Recorded => &["victim", "no-capability", CAP_SYS_RESOURCE],
        Privilege::Fallback => &["victim", "no-capability", CAP_SYS_RESOURCE, "victim", "no-bpf"],
    };
    let line = [launcher, &["sh", "-c", &enter]].concat();
    Command::new(line[0]).args(&line[1..]).current_dir(home).stdin(Stdio::null()).stdout(Stdio::null()).spawn()
}

fn check_group_kill(runner: &mut Child) -> Result<(), String> {
    let own = oom_score_adj(runner);
    if own != "-1000" {
        return Err(format!("the runner has oom_score_adj {own:?}"));
    }
    let output = send("exec", "cat /proc/self/oom_score_adj")?;
    if output.lines().next() != Some("0") {
        return Err(format!("a child's oom_score_adj: {output}"));
    }
    survive(runner, &format!("sleep 600 & exec victim eat {TOO_MUCH}"))
}

/// The kernel kills the whole session, and its recording says so.
fn check_post_mortem(runner: &mut Child) -> Result<(), String> {
    wait_for_loader(runner)?;
    let mut step = Command::new("krunner")
        .args(["send", "exec", &format!("exec victim eat {TOO_MUCH}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| format!("krunner send: {error}"))?;
    let ended = wait::within(PATIENCE, || runner.try_wait().ok().flatten());
    let _ = step.kill();
    let _ = step.wait();
    ended.ok_or("the runner survived a kill of its cgroup")?;
    let recording = format!("{ROOT}/home/work/.logs/recorder.bin");
    let output = Command::new("krunner").args(["oom", "post-mortem", "--json", &recording]).output();
    let output = output.map_err(|error| format!("krunner oom post-mortem: {error}"))?;
    // The next session must not find this recording.
    fs::remove_dir_all(Path::new(ROOT).join("home/work/.logs")).map_err(|error| error.to_string())?;
    let found: Value = serde_json::from_slice(&output.stdout).map_err(|error| format!("{error}: {output:?}"))?;
    let is_right = found["cause"] == "group_kill" && found["step"]["exit_code"].is_null();
    if is_right { Ok(()) } else { Err(format!("the post-mortem of a group kill: {found:#}")) }
}

fn check_program_log(runner: &mut Child) -> Result<(), String> {
    wait_for_loader(runner)?;
    // The ring buffer for log lines has one page. It exists only if the programs log.
    let has_log = || proc::ring_buffers(runner.id()).contains(&proc::page_bytes());
    wait::within(PATIENCE, || has_log().then_some(())).ok_or("the eBPF programs that log are not loaded")?;
    Ok(())
}

fn wait_for_loader(runner: &Child) -> Result<(), String> {
    let loads = || threads(runner.id()).iter().any(|name| name == "oom-loader");
    wait::within(PATIENCE, || (!loads()).then_some(())).ok_or("the tracer did not finish loading")?;
    Ok(())
}

fn check_kills(runner: &mut Child) -> Result<(), String> {
    // Loading the tracer takes seconds and several MiB here; a kill meanwhile would be a different scenario.
    wait_for_loader(runner)?;
    let own = oom_score_adj(runner);
    if own != "0" {
        return Err(format!("the runner without the capability has oom_score_adj {own:?}"));
    }
    KILLED.iter().try_for_each(|command| survive(runner, command))
}

fn oom_score_adj(process: &Child) -> String {
    fs::read_to_string(format!("/proc/{}/oom_score_adj", process.id())).unwrap_or_default().trim().to_owned()
}

fn threads(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.map(|name| name.trim().to_owned()).collect()
}

/// Causes an OOM kill and checks that the session still works.
fn survive(runner: &mut Child, command: &str) -> Result<(), String> {
    let before = kills();
    let output = send("exec", command)?;
    if kills() == before {
        return Err(format!("{command}: no OOM kill: {output}"));
    }
    if let Ok(Some(status)) = runner.try_wait() {
        return Err(format!("{command}: the runner exited: {status}; {} kills before, {} now", before, kills()));
    }
    if !output.contains("Out-of-memory detected!") {
        return Err(format!("{command}: the step has no report: {output}"));
    }
    let alive = send("exec", "echo alive")?;
    if alive.lines().next() == Some("alive") { Ok(()) } else { Err(format!("{command}: the next step: {alive}")) }
}

fn kills() -> u64 {
    let events = fs::read_to_string(Path::new(CGROUP).join("memory.events")).unwrap_or_default();
    let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.parse().ok()).unwrap_or_default()
}

/// Returns what `krunner send` prints. Fails if the runner does not answer.
fn send(op: &str, payload: &str) -> Result<String, String> {
    let mut command = Command::new("krunner");
    command.args(["send", op]);
    if !payload.is_empty() {
        command.arg(payload);
    }
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("krunner send: {error}"))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    // For `exec`, the exit code is that of the command.
    if op == "exec" || output.status.success() { Ok(text) } else { Err(text) }
}
