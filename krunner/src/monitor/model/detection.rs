//! How OOM kills are detected, and whose.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How OOM kills are detected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TracerKind {
    /// Traced in the kernel by eBPF programs.
    Bpf,
    /// Traced by `krunner node`, the eBPF programs of this machine, and received at its socket.
    Node,
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

/// How OOM kills are detected, and whose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "Watching")]
pub(crate) struct MonitorStatus {
    /// The detection method.
    pub tracer: TracerKind,
    /// Why eBPF is not used.
    pub why_not_bpf: Option<String>,
    /// Whose OOM kills are reported.
    pub scope: Scope,
}
