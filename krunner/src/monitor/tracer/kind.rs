//! The kinds of tracers, and how far they see. Plain values.

use serde::{Deserialize, Serialize};

/// By which means kills are seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TracerKind {
    /// The kernel tells.
    Bpf,
    /// `/proc` is compared with what it was.
    Snapshot,
}

/// Whose processes are seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Those of our pid namespace and below.
    PidNamespace,
    /// Those of our memory cgroup and below.
    Cgroup,
    /// All of the machine.
    All,
}
