//! The memory of the cgroup whose limit was reached, by kind.
//!
//! The kinds are those of `memory.stat`, whose names and sums differ between versions: `cache` contains `shmem` in v1, and `file`
//! does in v2. Kernel memory is `kernel` since Linux 5.18 and the sum of its parts before, and has a counter of its own in v1.
//! Pure.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::monitor::model::mount::MountUsage;
use crate::monitor::model::process::ProcessKey;

/// Maximum number of trees in a report.
const MAX_TREES: usize = 5;

/// The memory of a cgroup by kind (`memory.stat`), in bytes; `None` for what the kernel does not report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct MemoryUsage {
    /// Total memory in use.
    pub total_bytes: u64,
    /// Heaps, stacks and private mappings of programs (`anon`, `rss`).
    pub anon_bytes: Option<u64>,
    /// tmpfs, `/dev/shm` and shared memory (`shmem`).
    pub shmem_bytes: Option<u64>,
    /// Page cache of files on disk, without `shmem`.
    pub page_cache_bytes: Option<u64>,
    /// The part of the page cache that the kernel can reclaim without loss, approximately (`inactive_file`).
    pub inactive_file_bytes: Option<u64>,
    /// Memory of the kernel itself.
    pub kernel: Option<KernelMemory>,
    /// Memory in swap; not part of the total.
    pub swap_bytes: Option<u64>,
    /// The total minus all kinds.
    pub unexplained_bytes: u64,
    /// Memory that the victim freed between the kill and the reading; it was added to its kind.
    pub freed_bytes: u64,
    /// tmpfs mounts in this container, largest first.
    pub mounts: Vec<MountUsage>,
    /// Processes with their descendants, largest first.
    pub trees: Vec<TreeUsage>,
}

/// Memory that the kernel uses for a cgroup, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(clippy::struct_field_names, reason = "the unit is a part of each name")]
pub(crate) struct KernelMemory {
    /// Total kernel memory.
    pub total_bytes: u64,
    /// `pagetables` of `memory.stat`.
    pub page_tables_bytes: Option<u64>,
    /// `kernel_stack` of `memory.stat`.
    pub stacks_bytes: Option<u64>,
    /// `slab` of `memory.stat`.
    pub slab_bytes: Option<u64>,
    /// Socket buffers: `sock`, `memory.kmem.tcp.usage_in_bytes`.
    pub sockets_bytes: Option<u64>,
}

/// A process and its descendants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct TreeUsage {
    /// Root of the tree.
    #[serde(flatten)]
    pub key: ProcessKey,
    /// The root's comm.
    pub name: String,
    /// Number of descendants.
    pub descendants: usize,
    /// Resident memory of all of them; shared pages count more than once.
    pub rss_bytes: u64,
}

/// The text of a cgroup's files at one moment.
#[derive(Debug, Clone, Copy)]
pub(in crate::monitor) struct UsageText<'a> {
    /// The cgroup version, 1 or 2.
    pub(in crate::monitor) version: u8,
    /// Text of `memory.stat`.
    pub(in crate::monitor) stat: &'a str,
    /// `memory.current` (v2) or `memory.usage_in_bytes` (v1).
    pub(in crate::monitor) total_bytes: u64,
    /// Version 1: `memory.kmem.usage_in_bytes`
    pub(in crate::monitor) kernel_bytes: Option<u64>,
    /// Version 1: `memory.kmem.tcp.usage_in_bytes`
    pub(in crate::monitor) tcp_bytes: Option<u64>,
}

/// A process's memory, for the trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::monitor) struct ProcessUsage {
    pub(in crate::monitor) key: ProcessKey,
    pub(in crate::monitor) parent: Option<ProcessKey>,
    pub(in crate::monitor) name: String,
    pub(in crate::monitor) rss_bytes: u64,
}

impl MemoryUsage {
    /// Parses the files.
    #[must_use]
    pub(in crate::monitor) fn read(text: UsageText<'_>) -> Self {
        let stat: BTreeMap<&str, u64> = text.stat.lines().filter_map(entry).collect();
        let value = |name: &str| stat.get(name).copied();
        let usage = if text.version == 1 { Self::of_v1(text, value) } else { Self::of_v2(value) };
        Self { total_bytes: text.total_bytes, ..usage }.with_rest()
    }

    fn of_v1(text: UsageText<'_>, value: impl Fn(&str) -> Option<u64>) -> Self {
        let shmem_bytes = value("total_shmem");
        let kernel = text.kernel_bytes.map(|total_bytes| KernelMemory {
            total_bytes: total_bytes + text.tcp_bytes.unwrap_or(0),
            sockets_bytes: text.tcp_bytes,
            ..KernelMemory::default()
        });
        Self {
            anon_bytes: value("total_rss"),
            shmem_bytes,
            page_cache_bytes: value("total_cache").map(|bytes| bytes.saturating_sub(shmem_bytes.unwrap_or(0))),
            inactive_file_bytes: value("total_inactive_file"),
            kernel,
            swap_bytes: value("total_swap"),
            ..Self::default()
        }
    }

    fn of_v2(value: impl Fn(&str) -> Option<u64>) -> Self {
        let shmem_bytes = value("shmem");
        let parts = ["kernel_stack", "pagetables", "sec_pagetables", "percpu", "vmalloc", "slab"];
        let has_parts = value("slab").is_some();
        let sum = has_parts.then(|| parts.iter().filter_map(|part| value(part)).sum());
        let sockets_bytes = value("sock");
        let kernel = value("kernel").or(sum).map(|own_bytes| KernelMemory {
            // `sock` is charged to the cgroup and is not part of `kernel` (`mem_cgroup_charge_skmem`, mm/memcontrol.c).
            total_bytes: own_bytes + sockets_bytes.unwrap_or(0),
            page_tables_bytes: value("pagetables"),
            stacks_bytes: value("kernel_stack"),
            slab_bytes: value("slab"),
            sockets_bytes,
        });
        Self {
            anon_bytes: value("anon"),
            shmem_bytes,
            page_cache_bytes: value("file").map(|bytes| bytes.saturating_sub(shmem_bytes.unwrap_or(0))),
            inactive_file_bytes: value("inactive_file"),
            kernel,
            ..Self::default()
        }
    }

    fn with_rest(mut self) -> Self {
        self.unexplained_bytes = self.total_bytes.saturating_sub(self.explained_bytes());
        self
    }

    fn explained_bytes(&self) -> u64 {
        let kernel_bytes = self.kernel.map(|kernel| kernel.total_bytes);
        [self.anon_bytes, self.shmem_bytes, self.page_cache_bytes, kernel_bytes].into_iter().flatten().sum()
    }

    /// Adds the victim's swap, which may be freed by the time of the reading.
    #[must_use]
    pub(in crate::monitor) fn with_swap_of(mut self, victim_swap_bytes: u64) -> Self {
        if victim_swap_bytes > 0 {
            self.swap_bytes = self.swap_bytes.max(Some(victim_swap_bytes));
        }
        self
    }

    /// The usage at the kill, given the total then. Anonymous memory of the victim may be freed by the time of the reading; no
    /// other memory goes as fast. `is_exact`: the kernel provided the victim's anonymous memory; otherwise it is the resident
    /// memory.
    #[must_use]
    pub(in crate::monitor) fn at_kill(
        mut self,
        usage_bytes: Option<u64>,
        victim_anon_bytes: u64,
        is_exact: bool,
    ) -> Self {
        let Some(usage_bytes) = usage_bytes else { return self };
        let usage_bytes = usage_bytes.max(self.total_bytes);
        let freed_bytes = (usage_bytes - self.total_bytes).min(victim_anon_bytes);
        self.total_bytes = usage_bytes;
        if let Some(anon_bytes) = &mut self.anon_bytes {
            // Read after the total: other processes may have grown meanwhile, and what is more than all of it was never there.
            let freed_bytes = freed_bytes.min(usage_bytes.saturating_sub(*anon_bytes));
            *anon_bytes += freed_bytes;
            self.freed_bytes = freed_bytes;
        }
        self.without_later_cache(victim_anon_bytes, is_exact).with_rest()
    }

    /// Removes page cache that filled the freed memory before the reading. Programs had at least the victim's memory. If only its
    /// resident memory is known, which includes mapped files, the rest is unaccounted.
    fn without_later_cache(mut self, victim_anon_bytes: u64, is_exact: bool) -> Self {
        let Some((anon_bytes, cache_bytes)) = self.anon_bytes.zip(self.page_cache_bytes) else { return self };
        let later_bytes = victim_anon_bytes.saturating_sub(anon_bytes).min(cache_bytes);
        let cache_bytes = cache_bytes - later_bytes;
        self.page_cache_bytes = Some(cache_bytes);
        self.inactive_file_bytes = self.inactive_file_bytes.map(|bytes| bytes.min(cache_bytes));
        if is_exact {
            self.anon_bytes = Some(anon_bytes + later_bytes);
            self.freed_bytes += later_bytes;
        }
        self
    }

    /// Adds the process trees.
    #[must_use]
    pub(in crate::monitor) fn with_trees(mut self, processes: &[ProcessUsage]) -> Self {
        self.trees = trees(processes);
        self
    }

    /// Adds the tmpfs mounts.
    #[must_use]
    pub(in crate::monitor) fn with_mounts(mut self, mut mounts: Vec<MountUsage>) -> Self {
        mounts.sort_by_key(|mount| std::cmp::Reverse(mount.used_bytes));
        self.mounts = mounts;
        self
    }
}

/// The largest process trees: processes with at least one child, with all descendants. A process that only wraps another one,
/// such as a shell with one child, is left out.
fn trees(processes: &[ProcessUsage]) -> Vec<TreeUsage> {
    let by_key: BTreeMap<ProcessKey, &ProcessUsage> = processes.iter().map(|process| (process.key, process)).collect();
    let mut sums: BTreeMap<ProcessKey, (usize, u64, u64)> = BTreeMap::new();
    for process in processes {
        let mut seen = Vec::new();
        let mut next = process.parent;
        while let Some(above) = next.and_then(|key| by_key.get(&key)).filter(|above| !seen.contains(&above.key)) {
            seen.push(above.key);
            let (descendants, bytes, largest) = sums.entry(above.key).or_default();
            *descendants += 1;
            *bytes += process.rss_bytes;
            *largest = (*largest).max(process.rss_bytes);
            next = above.parent;
        }
    }
    let mut trees: Vec<TreeUsage> = sums
        .into_iter()
        .filter_map(|(key, (descendants, bytes, largest))| {
            let top = by_key.get(&key)?;
            // A process far larger than all others together is named by itself.
            let is_group = bytes + top.rss_bytes > largest.max(top.rss_bytes) / 2 * 3;
            let rss_bytes = bytes + top.rss_bytes;
            is_group.then(|| TreeUsage { key, name: top.name.clone(), descendants, rss_bytes })
        })
        .collect();
    trees.sort_by_key(|tree| (std::cmp::Reverse(tree.rss_bytes), tree.descendants));
    innermost(&trees, processes)
}

/// The innermost of nested trees of nearly the same size.
fn innermost(trees: &[TreeUsage], processes: &[ProcessUsage]) -> Vec<TreeUsage> {
    let parents: BTreeMap<ProcessKey, ProcessKey> =
        processes.iter().filter_map(|process| Some((process.key, process.parent?))).collect();
    let is_below = |key: ProcessKey, top: ProcessKey| {
        let chain = std::iter::successors(parents.get(&key).copied(), |key| parents.get(key).copied());
        chain.take(processes.len()).any(|above| above == top)
    };
    let is_shadowed = |tree: &TreeUsage| {
        trees.iter().any(|other| is_below(other.key, tree.key) && other.rss_bytes > tree.rss_bytes / 10 * 9)
    };
    trees.iter().filter(|tree| !is_shadowed(tree)).take(MAX_TREES).cloned().collect()
}

fn entry(line: &str) -> Option<(&str, u64)> {
    let (name, value) = line.split_once(' ')?;
    Some((name, value.trim().parse().ok()?))
}

#[cfg(test)]
#[path = "usage_tests.rs"]
mod tests;
