//! What a tracer tells the monitor.
//!
//! Plain values that own what they hold, so that a tracer may as well be another process (one for each
//! node, over a unix socket). Times are nanoseconds since boot, suspend included; memory is in bytes.

use serde::{Deserialize, Serialize};

use super::process::End;

/// A process, whoever gets its pid later.
///
/// The start is field 22 of `/proc/PID/stat` (proc(5)), which BPF knows in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessKey {
    /// In our pid namespace.
    pub pid: u32,
    /// Since boot, in ticks of 10 ms.
    pub start_ticks: u64,
}

impl ProcessKey {
    /// `/proc` counts in `USER_HZ`, which is 100 on every architecture that krunner is built for
    /// (include/asm-generic/param.h).
    const NS_PER_TICK: u64 = 10_000_000;

    /// From a start time as the kernel keeps it.
    #[must_use]
    pub fn from_boot_ns(pid: u32, start_boot_ns: u64) -> Self {
        Self { pid, start_ticks: start_boot_ns / Self::NS_PER_TICK }
    }

    /// When it started, rounded down to a tick.
    #[must_use]
    pub fn start_boot_ns(self) -> u64 {
        self.start_ticks.saturating_mul(Self::NS_PER_TICK)
    }

    /// Whether it was surely there at that time.
    #[must_use]
    pub fn started_before(self, at_boot_ns: u64) -> bool {
        self.start_boot_ns().saturating_add(Self::NS_PER_TICK) <= at_boot_ns
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceEvent {
    /// When.
    pub at_boot_ns: u64,
    /// What.
    pub what: Trace,
}

/// The kinds of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trace {
    /// A SIGKILL was generated.
    Kill(Kill),
    /// The OOM killer marked a victim.
    Mark(Mark),
    /// A process that SIGKILL ended is exiting; may be told twice.
    Exit(Exit),
    /// A process was made.
    Fork(Fork),
    /// A process runs a new program.
    Exec(Exec),
    /// One of our processes made a memory cgroup.
    CgroupMade(CgroupMade),
    /// The tracer dropped records since it last said so.
    Lost {
        /// How many.
        records: u64,
        /// How many of them were of kills: SIGKILLs, marks, exits.
        of_kills: u64,
    },
}

/// Who did something, if that can be seen from our namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// In our pid namespace.
    pub pid: u32,
    /// Its comm.
    pub name: String,
}

/// Where a SIGKILL came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KillSource {
    /// The kernel itself: the OOM killer, but also the end of a pid namespace or a hard `RLIMIT_CPU`.
    Kernel,
    /// A process.
    User,
}

/// A SIGKILL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kill {
    /// Whom it ends.
    pub victim: ProcessKey,
    /// Its comm.
    pub name: String,
    /// Its real user id, as the host numbers users.
    pub uid: u32,
    /// As in `/proc/PID/oom_score_adj`.
    pub oom_score_adj: i16,
    /// Whether the kernel or a process decided it.
    pub source: KillSource,
    /// Whose doing it was: for an OOM kill whoever asked for memory.
    pub sender: Option<Actor>,
    /// The victim's memory at that moment.
    pub memory: MemoryAtKill,
    /// Which memory map that is: the same for processes that share it, 0 when it is not known.
    pub memory_map: u64,
    /// The cgroup that its memory is charged to, by the kernel's id; `None` when the kernel does not tell.
    pub cgroup_id: Option<u64>,
    /// Another SIGKILL was there first; this one changed nothing.
    pub already_pending: bool,
}

/// Memory of a process just before it is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryAtKill {
    /// Address space.
    pub vm_bytes: u64,
    /// Resident: anonymous.
    pub anon_bytes: u64,
    /// Resident: of files.
    pub file_bytes: u64,
    /// Resident: shared memory.
    pub shmem_bytes: u64,
    /// Swapped out.
    pub swap_bytes: u64,
    /// Page tables.
    pub pgtables_bytes: u64,
}

/// A mark of the OOM killer. Not a kill by itself: what is exiting anyway is marked too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Who is marked.
    pub victim: ProcessKey,
    /// Whoever asked for memory.
    pub trigger: Option<Actor>,
}

/// The end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Which.
    pub process: ProcessKey,
}

/// A new process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    /// The new one.
    pub child: ProcessKey,
    /// Its parent, whose name and arguments it has so far; if that can be seen.
    pub parent_pid: Option<u32>,
}

/// A new program in a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Which process.
    pub process: ProcessKey,
    /// Its new comm.
    pub name: String,
    /// Its arguments, as bytes separated by NUL, as far as the tracer has them.
    pub cmdline: Vec<u8>,
    /// There is more of it.
    pub cmdline_is_cut: bool,
}

/// A new memory cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupMade {
    /// The kernel's id of it.
    pub id: u64,
    /// The one that it is in.
    pub parent_id: u64,
    /// The name of its directory; empty when it is not known.
    pub name: Vec<u8>,
}

/// What whoever waits for a process knows of its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Death {
    /// Which.
    pub process: ProcessKey,
    /// Its comm.
    pub name: String,
    /// Whose child it was, in the end.
    pub parent_pid: u32,
    /// How it has ended.
    pub end: End,
    /// When that was noticed.
    pub at_boot_ns: u64,
}
