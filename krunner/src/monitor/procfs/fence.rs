//! Which processes are ours: those in a cgroup, or below it. Pure.

/// Only processes in this cgroup, or below it, are in a snapshot.
#[derive(Debug, Clone)]
pub(in crate::monitor) struct Fence {
    /// The controller by which the hierarchy is known in `/proc/PID/cgroup`; empty for version 2.
    pub(in crate::monitor) controller: String,
    /// The cgroup's path there.
    pub(in crate::monitor) path: String,
}

impl Fence {
    /// Around the cgroup at that path in the hierarchy of that version which counts memory.
    pub(in crate::monitor) fn around(version: u8, path: &str) -> Self {
        let controller = if version == 1 { "memory" } else { "" };
        Self { controller: controller.to_owned(), path: path.to_owned() }
    }

    /// The path in that hierarchy, by the text of a process's `cgroup` (cgroups(7)).
    #[must_use]
    pub(in crate::monitor) fn path<'text>(&self, cgroups: &'text str) -> Option<&'text str> {
        cgroups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            controllers.split(',').any(|name| name == self.controller).then_some(path)
        })
    }

    /// Whether that text says that the process is inside.
    #[must_use]
    pub(in crate::monitor) fn lets_in(&self, cgroups: &str) -> bool {
        let below = self.path(cgroups).and_then(|path| path.strip_prefix(self.path.trim_end_matches('/')));
        // Above the top of our cgroup namespace paths go up: `/../other`.
        below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/') && !rest.split('/').any(|step| step == ".."))
    }
}
