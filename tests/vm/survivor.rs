//! Sessions under cgroup v2 whose runner survives, which the machine that runs the suites cannot show: with `CAP_SYS_RESOURCE` in a
//! cgroup that is killed as a whole (`memory.oom.group`), its children having the rank that they would have had without krunner;
//! and without that capability, through one kill after the other. They run with `--debug`, so that each kernel loads the eBPF
//! programs that log.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use krunner_tests::{proc, wait};

const CGROUP: &str = "/sys/fs/cgroup/survivor";
const ROOT: &str = "/tmp/survivor";

/// Number 24 of linux/capability.h.
const CAP_SYS_RESOURCE: &str = "24";

/// Room for the loading of the tracer.
const LIMIT_BYTES: &str = "100663296";

/// More than that, in MiB.
const TOO_MUCH: &str = "200";

/// The ring buffer for the log lines of eBPF programs, which is there only when these are: a page.
const LOG_BYTES: u64 = 4096;

/// Before the last one.
const ATTEMPTS: usize = 2;

/// An emulated processor takes its time.
const PATIENCE: Duration = Duration::from_mins(1);

/// What a session may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Protect itself, and needs to: its cgroup is killed as a whole.
    Protected,
    Bpf,
    Fallback,
}

/// What ends in a kill, and what is left of it afterwards is small.
const KILLED: &[&str] =
    &["exec victim eat 200", "victim clone-vm 200", "sleep 60 & victim clone-vm 200; kill $!", "exec victim eat 200"];

/// `Err` says what is not as it should be.
pub(crate) fn check() -> Result<(), String> {
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    if !up.is_ok_and(|up| up.success()) {
        return Err("the loopback interface is not up".to_owned());
    }
    // Before 5.11 the maps take that capability, to raise the limit of locked memory.
    in_session(Way::Protected, check_program_log)?;
    in_session(Way::Protected, check_group_kill)?;
    for way in [Way::Bpf, Way::Fallback] {
        // An emulated processor gives memory back ten times as slowly, and whoever was refused a page just before the kill asks
        // again meanwhile: here one kill in twenty takes the runner, too.
        let mut attempts = (0..ATTEMPTS).map(|_| in_session(way, check_kills));
        attempts.find(Result::is_ok).unwrap_or_else(|| in_session(way, check_kills))?;
    }
    Ok(())
}

/// Has a session and ends it.
fn in_session(way: Way, check: impl FnOnce(&mut Child) -> Result<(), String>) -> Result<(), String> {
    let mut runner = start(way).map_err(|error| format!("cannot start a session: {error}"))?;
    let answered = wait::within(PATIENCE, || send("status", "").is_ok().then_some(()));
    let checked = answered.ok_or_else(|| "the session never answered".to_owned()).and_then(|()| check(&mut runner));
    let _ = runner.kill();
    let _ = runner.wait();
    wait::within(PATIENCE, || fs::remove_dir(CGROUP).ok());
    checked
}

fn start(way: Way) -> std::io::Result<Child> {
    fs::create_dir(CGROUP)?;
    fs::write(Path::new(CGROUP).join("memory.max"), LIMIT_BYTES)?;
    fs::write(Path::new(CGROUP).join("memory.oom.group"), if way == Way::Protected { "1" } else { "0" })?;
    for folder in ["home/work", "home/config", "tmp", "etc/backend.ai"] {
        fs::create_dir_all(Path::new(ROOT).join(folder))?;
    }
    let enter = format!("echo 0 > {CGROUP}/cgroup.procs; exec krunner --debug --root {ROOT} app");
    let home = Path::new(ROOT).join("home/work");
    let launcher: &[&str] = match way {
        Way::Protected => &[],
        Way::Bpf => &["victim", "no-capability", CAP_SYS_RESOURCE],
        Way::Fallback => &["victim", "no-capability", CAP_SYS_RESOURCE, "victim", "no-bpf"],
    };
    let line = [launcher, &["sh", "-c", &enter]].concat();
    Command::new(line[0]).args(&line[1..]).current_dir(home).stdin(Stdio::null()).stdout(Stdio::null()).spawn()
}

fn check_group_kill(runner: &mut Child) -> Result<(), String> {
    let own = rank(runner);
    if own != "-1000" {
        return Err(format!("the runner has oom_score_adj {own:?}"));
    }
    let said = send("exec", "cat /proc/self/oom_score_adj")?;
    if said.lines().next() != Some("0") {
        return Err(format!("a child's oom_score_adj: {said}"));
    }
    survive(runner, &format!("sleep 600 & exec victim eat {TOO_MUCH}"))
}

fn check_program_log(runner: &mut Child) -> Result<(), String> {
    wait_for_loader(runner)?;
    let has_log = || proc::ring_buffers(runner.id()).contains(&LOG_BYTES);
    wait::within(PATIENCE, || has_log().then_some(())).ok_or("the eBPF programs that log are not loaded")?;
    Ok(())
}

fn wait_for_loader(runner: &Child) -> Result<(), String> {
    let loads = || threads(runner.id()).iter().any(|name| name == "oom-loader");
    wait::within(PATIENCE, || (!loads()).then_some(())).ok_or("the tracer is being loaded for ever")?;
    Ok(())
}

fn check_kills(runner: &mut Child) -> Result<(), String> {
    // Loading the tracer takes seconds here, and some MiB: a kill meanwhile would be another scene.
    wait_for_loader(runner)?;
    let own = rank(runner);
    if own != "0" {
        return Err(format!("the runner without the capability has oom_score_adj {own:?}"));
    }
    KILLED.iter().try_for_each(|command| survive(runner, command))
}

fn rank(process: &Child) -> String {
    fs::read_to_string(format!("/proc/{}/oom_score_adj", process.id())).unwrap_or_default().trim().to_owned()
}

fn threads(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.map(|name| name.trim().to_owned()).collect()
}

/// A kill, and the session goes on.
fn survive(runner: &mut Child, command: &str) -> Result<(), String> {
    let before = kills();
    let said = send("exec", command)?;
    if kills() == before {
        return Err(format!("{command}: nobody was killed: {said}"));
    }
    if let Ok(Some(status)) = runner.try_wait() {
        return Err(format!("{command}: the runner ended: {status}; {} kills before, {} now", before, kills()));
    }
    if !said.contains("Out-of-memory detected!") {
        return Err(format!("{command}: the step has no report: {said}"));
    }
    let alive = send("exec", "echo alive")?;
    if alive.lines().next() == Some("alive") { Ok(()) } else { Err(format!("{command}: the next step: {alive}")) }
}

fn kills() -> u64 {
    let events = fs::read_to_string(Path::new(CGROUP).join("memory.events")).unwrap_or_default();
    let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.parse().ok()).unwrap_or_default()
}

/// What `krunner send` prints; `Err` without an answer.
fn send(op: &str, payload: &str) -> Result<String, String> {
    let mut command = Command::new("krunner");
    command.args(["send", op]);
    if !payload.is_empty() {
        command.arg(payload);
    }
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("krunner send: {error}"))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    // The exit code of a step is the command's own.
    if op == "exec" || output.status.success() { Ok(said) } else { Err(said) }
}
