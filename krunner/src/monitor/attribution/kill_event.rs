//! What the engine reports: a kill, or what else happened to memory.

use super::memory_throttled::MemoryThrottled;
use super::memory_warning::MemoryWarning;
use super::oom_report::OomReport;
use super::rate_limit::Suppressed;

/// What the engine reports.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum KillEvent {
    /// The OOM killer killed a process.
    Report(Box<OomReport>),
    /// A user-space OOM killer of the machine killed a process. Only of an engine that traces for others: a runner remembers it as
    /// the reason for an exit.
    ByDaemon(Box<DaemonKill>),
    /// OOM kills beyond the rate limit, counted by name.
    Suppressed(Suppressed),
    /// The tracer dropped records; an OOM kill may have been missed.
    RecordsLost {
        /// Number of dropped records.
        records: u64,
    },
    /// Memory is running out.
    Warning(Box<MemoryWarning>),
    /// The kernel slows programs down at `memory.high`.
    Throttled(Box<MemoryThrottled>),
    /// The limit is reached and the OOM killer is disabled (`oom_kill_disable`).
    OomWithoutKill,
    /// OOM kills were counted but not attributed yet.
    AttributionPending {
        /// Number of kills.
        kills: u64,
    },
    /// OOM kills were counted and cannot be attributed to a process.
    Unattributed {
        /// Number of kills.
        kills: u64,
        /// The reason, where `/proc` hides processes; a sentence fragment.
        reason: Option<String>,
    },
}

/// A SIGKILL from a user-space OOM killer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DaemonKill {
    /// Name of the user-space OOM killer.
    pub daemon: &'static str,
    /// The kill, with its evidence. What it says about limits and triggers is empty: the kernel did not choose the victim.
    pub report: OomReport,
}
