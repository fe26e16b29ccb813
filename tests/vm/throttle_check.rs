//! Checks that a monitor in a cgroup says so when the kernel slows that cgroup down at `memory.high`, with and without BPF, and reports
//! no kill.

use std::process::Stdio;

use crate::watched_cgroup::WatchedCgroup;

/// More than a monitor needs, and it loads the tracer there.
const HIGH_BYTES: u64 = 96 << 20;

/// Far beyond: the kernel lets a program grow slowly.
const VICTIM: &str = "victim eat 160 --hold";

/// `Err` describes what is missing.
pub(crate) fn check() -> Result<(), String> {
    check_with("throttle-bpf", &["monitor", "--json"])?;
    check_with("throttle-no-bpf", &["monitor", "--json", "--no-bpf"])
}

fn check_with(name: &str, args: &[&str]) -> Result<(), String> {
    let monitor = WatchedCgroup::start_inside(name, &HIGH_BYTES.to_string(), args);
    let mut monitor = monitor.map_err(|error| format!("cannot start a monitor: {error}"))?;
    monitor.event("watching")?;
    let mut slow = monitor.inside(VICTIM).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    let slow = slow.as_mut().map_err(|error| format!("cannot start {VICTIM}: {error}"))?;
    let report = monitor.event("memory_throttled");
    let _ = slow.kill();
    let _ = slow.wait();
    let report = report.map_err(|problem| format!("{name}: {problem}"))?;
    let is_right = report["high_bytes"] == HIGH_BYTES
        && report["levels_above"] == 0
        && report["stalled_percent"].as_u64().is_none_or(|percent| (25..=100).contains(&percent));
    match monitor.line("oom_kill") {
        _ if !is_right => Err(format!("{name}: {report}")),
        Some(kill) => Err(format!("{name}: a kill that there was not: {kill}")),
        None => Ok(()),
    }
}
