//! Identifies the current process and its surroundings, for the header and for comparison with an earlier recording.

use std::os::unix::fs::MetadataExt as _;
use std::{env, fs};

use uuid::Uuid;

use super::cause::CurrentState;
use super::record::RecordingHeader;
use super::unix_ns;
use crate::monitor::model::clock::{boot_ns, time_of_day};
use crate::monitor::sources::cgroup::{Cgroup, CgroupRoot};

/// The header for this process.
#[must_use]
pub(super) fn new_header() -> RecordingHeader {
    let cgroup = Cgroup::find(&CgroupRoot::default()).ok();
    let at_boot_ns = boot_ns();
    let (nonce, _) = Uuid::new_v4().as_u64_pair();
    let kills_groups = cgroup.as_ref().is_some_and(|cgroup| cgroup.kills_groups_at(&cgroup.path));
    RecordingHeader {
        boot_id: boot_id(),
        pid: std::process::id(),
        pid_namespace: fs::metadata("/proc/self/ns/pid").map_or(0, |about| about.ino()),
        start_ticks: start_ticks(),
        at_boot_ns,
        unix_ns: unix_ns(time_of_day(at_boot_ns)),
        krunner: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_id: kernel_id(),
        hostname: nix::sys::utsname::uname()
            .map_or_else(|_| String::new(), |uname| uname.nodename().to_string_lossy().into_owned()),
        oom_kill_count: cgroup.as_ref().and_then(|cgroup| cgroup.facts().oom_kill_count),
        cgroup_id: cgroup.as_ref().map(|cgroup| cgroup.id),
        cgroup: cgroup.map(|cgroup| shortened(cgroup.path)),
        kills_groups,
        nonce,
    }
}

/// The agent's ID of this container.
#[must_use]
pub(crate) fn kernel_id() -> Option<String> {
    env::var("BACKENDAI_KERNEL_ID").ok().filter(|id| Uuid::parse_str(id).is_ok())
}

/// The current state of this process's cgroup and boot.
#[must_use]
pub(super) fn current_state() -> CurrentState {
    let cgroup = Cgroup::find(&CgroupRoot::default()).ok();
    CurrentState {
        is_locked: false,
        boot_id: boot_id(),
        cgroup_id: cgroup.as_ref().map(|cgroup| cgroup.id),
        oom_kill_count: cgroup.and_then(|cgroup| cgroup.facts().oom_kill_count),
    }
}

/// The current state for this recording: its cgroup may still exist when this process is in another one.
#[must_use]
pub(super) fn state_for(header: &RecordingHeader) -> CurrentState {
    let cgroup = Cgroup::find(&CgroupRoot::default()).ok();
    let kills = header.cgroup.as_ref().zip(cgroup).and_then(|(path, cgroup)| cgroup.kills_at(path));
    match kills {
        Some((id, count)) => {
            CurrentState { is_locked: false, boot_id: boot_id(), cgroup_id: Some(id), oom_kill_count: Some(count) }
        }
        None => current_state(),
    }
}

/// The kernel's boot ID (random(4)).
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The start of this process; 0 if `/proc` does not tell.
fn start_ticks() -> u64 {
    procfs::process::Process::myself().and_then(|myself| myself.stat()).map_or(0, |stat| stat.starttime)
}

/// Truncates a path to a bounded length.
fn shortened(mut path: String) -> String {
    const MAX_BYTES: usize = 256;
    path.truncate(path.floor_char_boundary(MAX_BYTES));
    path
}
