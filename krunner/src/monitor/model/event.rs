//! Events that a tracer sends to the monitor.
//!
//! All values own their data, so a tracer may be another process (one per node, over a unix socket). Times are nanoseconds since
//! boot including suspend; memory is in bytes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limit::LimitAtKill;
use super::process::{ExitKind, NamespacePid, ProcessKey};

/// An event with its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TraceEvent {
    /// Time of the event, in nanoseconds since boot.
    pub at_boot_ns: u64,
    /// The traced event and its fields.
    pub what: Trace,
}

/// The kinds of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Trace {
    /// A SIGKILL was sent.
    Kill(Kill),
    /// The OOM killer marked a victim.
    Mark(Mark),
    /// A process that received SIGKILL is exiting. May be reported twice.
    Exit(ProcessExit),
    /// A process forked.
    Fork(Fork),
    /// A process called execve(2).
    Exec(Exec),
    /// A process in view created a memory cgroup.
    CgroupMade(CgroupMade),
    /// The tracer dropped records.
    Lost {
        /// Records dropped since the last such event.
        records: u64,
        /// How many of them were about kills (SIGKILL, mark or exit).
        of_kills: u64,
    },
}

/// A process that did something, if it is visible in krunner's PID namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Actor {
    /// PID in krunner's PID namespace.
    pub pid: u32,
    /// The process's comm.
    pub name: String,
}

/// Where a SIGKILL came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum KillSource {
    /// The kernel itself: the OOM killer, the end of a PID namespace, or a hard `RLIMIT_CPU`.
    Kernel,
    /// Another process, by kill(2).
    User,
}

/// The process that sent a SIGKILL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum KillSender {
    /// It is visible in krunner's PID namespace.
    Visible(Actor),
    /// A user-space OOM killer of the machine, by name.
    OomDaemon(&'static str),
    /// Another process that is not visible.
    #[default]
    Outside,
}

/// A SIGKILL sent to a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kill {
    /// The process that received it.
    pub victim: ProcessKey,
    /// The victim's comm.
    pub name: String,
    /// Real user ID in the host's user namespace.
    pub uid: u32,
    /// As in `/proc/PID/oom_score_adj`.
    pub oom_score_adj: i16,
    /// Whether the kernel or a process sent it.
    pub source: KillSource,
    /// The sending process. For an OOM kill, the process whose allocation failed.
    pub sender: Option<Actor>,
    /// The user-space OOM killer that sent it, if that is not visible in krunner's PID namespace, or if krunner traces for others.
    #[serde(skip)]
    pub daemon: Option<&'static str>,
    /// The victim's memory when the signal was sent.
    pub memory: MemoryAtKill,
    /// Identifies the memory map. Processes that share memory have the same value; 0 if unknown.
    pub memory_map: u64,
    /// Kernel ID of the cgroup that the memory is charged to; `None` if the kernel does not provide it.
    pub cgroup_id: Option<u64>,
    /// The limit that was reached or was closest. Only for a SIGKILL from the kernel, and `None` where no limit applies.
    pub limit: Option<LimitAtKill>,
    /// An earlier SIGKILL was already pending, so this one had no effect.
    pub already_pending: bool,
    /// The victim's IDs below the initial PID namespace, outermost first. Only if the whole machine is traced.
    #[serde(default)]
    pub namespaces: Vec<NamespacePid>,
}

/// Memory of a process just before the kernel reclaims it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_field_names, reason = "the unit is a part of each name")]
pub(crate) struct MemoryAtKill {
    /// Size of the address space.
    pub vm_bytes: u64,
    /// Resident anonymous memory.
    pub anon_bytes: u64,
    /// Resident file pages.
    pub file_bytes: u64,
    /// Resident shared memory.
    pub shmem_bytes: u64,
    /// Memory swapped out.
    pub swap_bytes: u64,
    /// Size of the page tables.
    pub pgtables_bytes: u64,
}

/// The OOM killer marked a process as victim. Not a kill by itself: the kernel also marks processes that are already exiting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// The marked process.
    pub victim: ProcessKey,
    /// The process whose allocation failed.
    pub trigger: Option<Actor>,
}

/// A process that received SIGKILL exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessExit {
    /// The exiting process.
    pub process: ProcessKey,
}

/// A process forked a child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fork {
    /// The new process.
    pub child: ProcessKey,
    /// The parent, whose name and arguments the child has until it calls execve(2); `None` if it is not visible.
    pub parent_pid: Option<u32>,
}

/// A process called execve(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exec {
    /// The calling process.
    pub process: ProcessKey,
    /// The new comm.
    pub name: String,
    /// NUL-separated arguments, as far as the tracer captured them.
    pub cmdline: Vec<u8>,
    /// Whether the arguments were truncated.
    pub cmdline_is_cut: bool,
}

/// A memory cgroup was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CgroupMade {
    /// The kernel's ID of the cgroup.
    pub id: u64,
    /// The kernel's ID of the parent cgroup.
    pub parent_id: u64,
    /// Directory name; empty if unknown.
    pub name: Vec<u8>,
}

/// The exit of a child, as its parent observed it before reaping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChildExit {
    /// The child that exited.
    pub process: ProcessKey,
    /// The child's comm.
    pub name: String,
    /// The child's last parent.
    pub parent_pid: u32,
    /// Whether SIGKILL ended it.
    pub end: ExitKind,
    /// Time of the observation, in nanoseconds since boot.
    pub at_boot_ns: u64,
}

impl Kill {
    /// The victim's comm, and who sent it.
    pub(crate) fn into_name_and_sender(self) -> (String, KillSender) {
        let named = || self.sender.map_or(KillSender::Outside, KillSender::Visible);
        (self.name, self.daemon.map_or_else(named, KillSender::OomDaemon))
    }
}

#[cfg(test)]
impl Kill {
    /// A SIGKILL from the kernel to a process with a little anonymous memory.
    pub(crate) fn example(victim: ProcessKey) -> Self {
        let memory = MemoryAtKill {
            vm_bytes: 9,
            anon_bytes: 5,
            file_bytes: 0,
            shmem_bytes: 0,
            swap_bytes: 0,
            pgtables_bytes: 0,
        };
        Self {
            victim,
            name: "hog".to_owned(),
            uid: 0,
            oom_score_adj: 0,
            source: KillSource::Kernel,
            sender: None,
            daemon: None,
            memory,
            memory_map: u64::from(victim.pid),
            cgroup_id: None,
            limit: None,
            already_pending: false,
            namespaces: Vec::new(),
        }
    }
}
