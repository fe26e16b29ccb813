//! Sources of [`TraceEvent`](super::TraceEvent)s: what can be had on this host, and how it is set up.

use serde::{Deserialize, Serialize};

mod bpf;
pub mod btf;
pub mod decode;
mod loading;

pub use bpf::{INIT_PID_NAMESPACE, Reach, Target};
pub use loading::Loading;

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
