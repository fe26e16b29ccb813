//! A memory limit as the kernel has it at one moment.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a limit applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LimitKind {
    /// The limit of memory without swap.
    Memory,
    /// Memory and swap together (cgroup v1, `memory.memsw.limit_in_bytes`).
    MemoryAndSwap,
}

/// The limit with the least free memory of those that apply to a victim's cgroup, read when the kernel killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LimitAtKill {
    /// Kernel ID of the cgroup that has the limit; `None` if it could not be read.
    pub cgroup_id: Option<u64>,
    /// What the limit applies to.
    pub kind: LimitKind,
    /// Value of the limit.
    pub limit_bytes: u64,
    /// Memory charged to that cgroup.
    pub usage_bytes: u64,
}
