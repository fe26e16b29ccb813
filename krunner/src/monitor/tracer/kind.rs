//! Detection methods and their scope. Plain values.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How OOM kills are detected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TracerKind {
    /// Traced in the kernel by eBPF programs.
    Bpf,
    /// Inferred from cgroup counters and snapshots of `/proc`.
    Snapshot,
}

/// Whose OOM kills are reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scope {
    /// Processes in our PID namespace and its children.
    PidNamespace,
    /// Processes in our memory cgroup and its descendants.
    Cgroup,
    /// All processes on the machine.
    All,
}
