//! A memory cgroup: facts about it, and which processes are in it. Pure.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Facts about a memory cgroup at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct CgroupFacts {
    /// Path as in `/proc/PID/cgroup`, relative to our cgroup namespace.
    pub path: String,
    /// Cgroup version, 1 or 2.
    pub version: u8,
    /// The smallest limit of the cgroup and its ancestors; null if there is no limit.
    pub limit_bytes: Option<u64>,
    /// Usage of the cgroup that has this limit, or of this cgroup if there is no limit.
    pub usage_bytes: Option<u64>,
    /// OOM kills so far: v1 counts only the cgroup's own members, v2 also its descendants.
    pub oom_kill_count: Option<u64>,
}

/// A cgroup; processes in it and in its descendants pass the filter.
#[derive(Debug, Clone)]
pub(in crate::monitor) struct CgroupFilter {
    /// The controller that names the hierarchy in `/proc/PID/cgroup`; empty for cgroup v2.
    pub(in crate::monitor) controller: String,
    /// The cgroup's path in that hierarchy.
    pub(in crate::monitor) path: String,
    /// Its directory, to list its members; `None` if the hierarchy is not visible.
    pub(in crate::monitor) dir: Option<PathBuf>,
}

impl CgroupFilter {
    /// A filter for the cgroup at this path in the memory controller's hierarchy of this cgroup version.
    pub(in crate::monitor) fn new(version: u8, path: &str) -> Self {
        let controller = if version == 1 { "memory" } else { "" };
        Self { controller: controller.to_owned(), path: path.to_owned(), dir: None }
    }

    /// The path in this hierarchy from the text of `/proc/PID/cgroup` (cgroups(7)).
    #[must_use]
    pub(in crate::monitor) fn path<'text>(&self, cgroups: &'text str) -> Option<&'text str> {
        cgroups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            controllers.split(',').any(|name| name == self.controller).then_some(path)
        })
    }

    /// Whether a process with this text of `/proc/PID/cgroup` passes the filter.
    #[must_use]
    pub(in crate::monitor) fn contains(&self, cgroups: &str) -> bool {
        let below = self.path(cgroups).and_then(|path| path.strip_prefix(self.path.trim_end_matches('/')));
        // Paths outside our cgroup namespace begin with `..`: `/../other`.
        below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/') && !rest.split('/').any(|step| step == ".."))
    }
}
