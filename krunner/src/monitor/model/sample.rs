//! Memory samples: a cgroup and its largest processes at one moment.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::process::ProcessKey;

/// The memory of a cgroup at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct MemorySample {
    /// Time of the sample, in nanoseconds since boot including suspend.
    pub at_boot_ns: u64,
    /// Memory in use: `memory.current`, `memory.usage_in_bytes`.
    pub usage_bytes: u64,
    /// File pages that the kernel can reclaim without loss: `inactive_file` of `memory.stat`; `None` if it was not read.
    pub inactive_file_bytes: Option<u64>,
    /// The limit at that moment; `None` if there is none.
    pub limit_bytes: Option<u64>,
    /// The largest processes, largest first, at most [`MemorySample::MAX_PROCESSES`]; empty if none were read.
    pub processes: Vec<ProcessMemory>,
}

/// Resident memory of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ProcessMemory {
    /// Identity of the process.
    #[serde(flatten)]
    pub key: ProcessKey,
    /// The process's comm.
    pub name: Arc<str>,
    /// Resident memory (`VmRSS`, proc(5)).
    pub rss_bytes: u64,
}

impl MemorySample {
    /// Number of processes that a report shows.
    pub(crate) const MAX_PROCESSES: usize = 5;
}
