//! What the probe found on this host, and what a check of it says. Plain data.

use std::{fmt, io};

use serde::{Deserialize, Serialize};

use super::btf::{BtfError, KernelFacts};
use crate::monitor::model::cgroup::CgroupFacts;
use crate::monitor::model::detection::TracerKind;
use crate::monitor::sources::cgroup::{Cgroup, CgroupError};
use crate::monitor::sources::procfs::ProcView;
use crate::sys::Capabilities;

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CheckState {
    /// The requirement is met.
    Ok,
    /// A requirement of eBPF is not met.
    Missing,
    /// Informational, no requirement.
    Note,
}

/// A line of `krunner doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct HostCheck {
    /// Stable name of the check.
    pub check: &'static str,
    /// Whether the requirement is met.
    pub state: CheckState,
    /// What was found, in words.
    pub found: String,
    /// How to fix it.
    pub remedy: Option<String>,
}

/// Why the eBPF tracer is unavailable. The texts are sentence fragments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Obstacle {
    /// Stable name of the check that found it.
    pub check: &'static str,
    /// The missing requirement.
    pub what: String,
    /// How to fix it.
    pub remedy: Option<String>,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.remedy {
            Some(remedy) => write!(to, "{} (remedy: {remedy})", self.what),
            None => to.write_str(&self.what),
        }
    }
}

/// The tracer to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TracerChoice {
    /// The best one that the host allows.
    pub tracer: TracerKind,
    /// Why eBPF is not used; empty if it is.
    pub why_not_better: Vec<Obstacle>,
}

/// Everything that the probe found.
#[derive(Debug)]
pub(crate) struct Findings {
    /// The thread's permitted capabilities.
    pub permitted: Capabilities,
    /// The thread's bounding set, the maximum that an exec can grant.
    pub bounding: Capabilities,
    /// The thread's effective uid is 0.
    pub is_root: bool,
    /// `no_new_privs` is set: execs do not grant file capabilities.
    pub no_new_privileges: bool,
    /// `Seccomp:` of the thread's status: 0 is none, 2 a filter.
    pub seccomp: Option<u8>,
    /// Our user namespace is the host's; `None` if unknown.
    pub is_initial_user_namespace: Option<bool>,
    /// Our PID namespace is the host's; `None` if unknown.
    pub is_initial_pid_namespace: Option<bool>,
    /// The result of a bpf(2) call.
    pub bpf_answer: io::Result<()>,
    /// Struct offsets from the kernel's BTF.
    pub btf: Result<KernelFacts, BtfError>,
    /// The lockdown mode; `None` without securityfs or lockdown.
    pub lockdown: Option<String>,
    /// The mount point of tracefs.
    pub tracefs: Option<String>,
    /// The sysctl `kernel.unprivileged_bpf_disabled`.
    pub unprivileged_bpf_disabled: Option<u8>,
    /// Which processes `/proc` shows.
    pub proc_view: ProcView,
    /// The `hidepid` mount option of `/proc`; `None` if it hides nothing.
    pub hidepid: Option<String>,
    /// The soft limit of locked memory; `None` if unlimited.
    pub memlock_bytes: Option<u64>,
    /// Our memory cgroup.
    pub cgroup: Result<Cgroup, CgroupError>,
    /// Facts read from the memory cgroup.
    pub cgroup_facts: Option<CgroupFacts>,
    /// Errors while reading the memory cgroup.
    pub cgroup_problems: Vec<CgroupError>,
}
