//! Finds visible processes that our counters do not cover: those in other memory cgroups than ours.
//!
//! A container engine puts a container's processes into one cgroup, whose descendants are counted with it. But an init
//! that creates its own cgroups, an `exec` by another tool, or a sidecar that shares the PID namespace may have
//! processes elsewhere. Without BPF their OOM kills are not detected.

use std::collections::BTreeSet;
use std::fs;

use super::{Cgroup, CgroupRoot};
use crate::monitor::model::cgroup::CgroupFilter;

/// Maximum number of processes to read, about 15 us each.
const MAX_PROCESSES: usize = 4096;

impl Cgroup {
    /// Paths of the visible processes' memory cgroups, except ours and its descendants.
    #[must_use]
    pub(crate) fn uncounted(&self, root: &CgroupRoot) -> BTreeSet<String> {
        let cgroup_filter = CgroupFilter::new(self.version, &self.path);
        let entries = fs::read_dir(root.proc("")).into_iter().flatten().flatten();
        let is_process = |name: &std::ffi::OsString| {
            name.to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        };
        let processes = entries.map(|entry| entry.file_name()).filter(is_process).take(MAX_PROCESSES);
        let beside = processes.filter_map(|name| {
            let text = fs::read(root.proc(&format!("{}/cgroup", name.to_str()?))).ok()?;
            let text = String::from_utf8_lossy(&text);
            // In v2 a zombie is in the root cgroup (`cgroup_exit`, kernel/cgroup/cgroup.c) and is not charged.
            let path = cgroup_filter.path(&text).filter(|path| *path != "/" && !cgroup_filter.contains(&text))?;
            Some(path.to_owned())
        });
        beside.collect()
    }
}
