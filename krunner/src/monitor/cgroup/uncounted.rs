//! Which processes of this container our counters do not count: those in memory cgroups beside ours.
//!
//! An engine puts the processes of a container into one cgroup, and what runs below it is counted with it. But an init
//! that makes cgroups of its own, an `exec` by another tool, or a sidecar that shares the PID namespace has processes
//! elsewhere: without BPF nobody tells of kills there.

use std::collections::BTreeSet;
use std::fs;

use super::{Cgroup, CgroupRoot};
use crate::monitor::procfs::Fence;

/// Processes that are looked at, some 15 us each.
const MAX_PROCESSES: usize = 4096;

impl Cgroup {
    /// The memory cgroups of visible processes that are not ours or below it, by their paths.
    #[must_use]
    pub fn uncounted(&self, root: &CgroupRoot) -> BTreeSet<String> {
        let fence = Fence::around(self.version, &self.path);
        let entries = fs::read_dir(root.proc("")).into_iter().flatten().flatten();
        let is_process = |name: &std::ffi::OsString| {
            name.to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        };
        let processes = entries.map(|entry| entry.file_name()).filter(is_process).take(MAX_PROCESSES);
        let beside = processes.filter_map(|name| {
            let text = fs::read(root.proc(&format!("{}/cgroup", name.to_str()?))).ok()?;
            let text = String::from_utf8_lossy(&text);
            // A zombie of v2 is at the top (`cgroup_exit`, kernel/cgroup/cgroup.c) and is charged nowhere.
            let path = fence.path(&text).filter(|path| *path != "/" && !fence.lets_in(&text))?;
            Some(path.to_owned())
        });
        beside.collect()
    }
}
