//! Checks which tracer krunner chooses where the kernel restricts BPF, and that it reports a kill in each case.
//!
//! Not all of it can be taken back: the machine is of no use for other checks afterwards.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use krunner_tests::wait;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

const CGROUP: &str = "/sys/fs/cgroup/restrictions";
const OUTPUT: &str = "/tmp/restrictions";

const LIMIT_BYTES: &str = "33554432";

const SYSCTL: &str = "/proc/sys/kernel/unprivileged_bpf_disabled";
const SECURITY: &str = "/sys/kernel/security";
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";
const BTF: &str = "/sys/kernel/btf";

/// Long because the processor is emulated: loading takes seconds there.
const PATIENCE: Duration = Duration::from_mins(1);

/// What krunner can do.
#[derive(Clone, Copy, Debug)]
struct Expected {
    tracer: &'static str,
    confidence: &'static str,
}

const BPF: Expected = Expected { tracer: "bpf", confidence: "confirmed" };
const SNAPSHOT: Expected = Expected { tracer: "snapshot", confidence: "inferred" };

/// File, value, and what root can do then. A value may be followed by those below it, but not by those above.
const SETTINGS: &[(&str, &str, Expected)] = &[
    (SYSCTL, "0", BPF),
    (SYSCTL, "2", BPF),
    (SYSCTL, "1", BPF),
    (LOCKDOWN, "integrity", BPF),
    // bpf_probe_read_kernel() is refused (LOCKDOWN_BPF_READ_KERNEL, include/linux/security.h).
    (LOCKDOWN, "confidentiality", SNAPSHOT),
];

/// Calls `done` with each check and its problem.
pub(crate) fn check(mut done: impl FnMut(&str, Result<(), String>)) {
    done("no BTF", without_btf());
    let none: Option<&str> = None;
    // Mounted already where something else needed it.
    let _ = mount(Some("securityfs"), SECURITY, Some("securityfs"), MsFlags::empty(), none);
    for (file, value, expected) in SETTINGS {
        let name = format!("{} = {value}", file.rsplit('/').next().unwrap_or(file));
        let set = fs::write(file, value).map_err(|error| format!("cannot write {value} to {file}: {error}"));
        done(&name, set.and_then(|()| check_kill(*expected)));
    }
}

/// Hides the kernel's types, as if it were built without them.
fn without_btf() -> Result<(), String> {
    let none: Option<&str> = None;
    mount(Some("tmpfs"), BTF, Some("tmpfs"), MsFlags::empty(), none).map_err(|error| format!("{BTF}: {error}"))?;
    let seen = check_kill(SNAPSHOT);
    umount2(BTF, MntFlags::empty()).map_err(|error| format!("{BTF}: {error}"))?;
    seen
}

fn check_kill(expected: Expected) -> Result<(), String> {
    let mut monitor = start().map_err(|error| format!("cannot start a monitor: {error}"))?;
    let seen = report(&mut monitor, expected);
    let _ = monitor.kill();
    let _ = monitor.wait();
    wait::within(PATIENCE, || fs::remove_dir(CGROUP).ok());
    seen
}

fn start() -> std::io::Result<Child> {
    fs::create_dir(CGROUP)?;
    fs::write(Path::new(CGROUP).join("memory.max"), LIMIT_BYTES)?;
    Command::new("krunner").args(["monitor", "--json"]).stdin(Stdio::null()).stdout(File::create(OUTPUT)?).spawn()
}

fn report(monitor: &mut Child, expected: Expected) -> Result<(), String> {
    let watching = wait::within(PATIENCE, || match monitor.try_wait() {
        Ok(None) => line("watching").map(Ok),
        ended => Some(Err(format!("the monitor ended: {ended:?}"))),
    });
    let watching = watching.ok_or("the monitor is not ready within a minute")??;
    if watching["tracer"] != expected.tracer {
        return Err(format!("expected the tracer {}: {watching}", expected.tracer));
    }
    let hog = format!(
        "echo 0 > /proc/self/oom_score_adj; echo 0 > {CGROUP}/cgroup.procs; exec victim eat 200 --after-ms 1500"
    );
    let status = Command::new("sh").args(["-c", &hog]).stdin(Stdio::null()).status();
    let status = status.map_err(|error| format!("cannot start a hog: {error}"))?;
    let report = wait::within(PATIENCE, || line("oom_kill"));
    let report = report.ok_or_else(|| format!("no report of a kill; the hog ended with {status}"))?;
    let is_right = report["confidence"] == expected.confidence && report["victim"]["name"] == "victim";
    if is_right { Ok(()) } else { Err(format!("the report of the kill: {report}")) }
}

/// The first line of the monitor's output that is this event.
fn line(event: &str) -> Option<Value> {
    let text = fs::read_to_string(OUTPUT).unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.find(|line| line["event"] == event)
}
