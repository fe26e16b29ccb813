//! Checks which tracer krunner chooses where the kernel restricts BPF, and that it reports a kill in each case.
//!
//! Not all of it can be taken back: the machine is of no use for other checks afterwards.

use std::fs;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::watched_cgroup::WatchedCgroup;

const SYSCTL: &str = "/proc/sys/kernel/unprivileged_bpf_disabled";
const SECURITY: &str = "/sys/kernel/security";
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";
const BTF: &str = "/sys/kernel/btf";

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
    let monitor = WatchedCgroup::start("restrictions", &["monitor", "--json"]);
    let mut monitor = monitor.map_err(|error| format!("cannot start a monitor: {error}"))?;
    let watching = monitor.event("watching")?;
    if watching["tracer"] != expected.tracer {
        return Err(format!("expected the tracer {}: {watching}", expected.tracer));
    }
    let report = monitor.kill("victim eat 200 --after-ms 1500")?;
    let is_right = report["confidence"] == expected.confidence && report["victim"]["name"] == "victim";
    if is_right { Ok(()) } else { Err(format!("the report of the kill: {report}")) }
}
