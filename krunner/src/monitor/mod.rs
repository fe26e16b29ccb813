//! OOM monitoring: which process the kernel's OOM killer killed, who started it, its size, and the confidence of the
//! answer.
//!
//! ```text
//!  task.rs         owns the sources, feeds the engine, emits MonitorEvent ─▶ session, `krunner monitor`
//!    │             handle.rs: its handles · message.rs: events, requests · setup.rs: what this container allows
//!  report/         text, JSON, journal, plot, flight recorder
//!    │
//!  attribution/    engine: correlate, infer, history, rate limit    pure: time is a parameter
//!    │
//!  explain/        which limit, where the memory was, what grew, what would have been enough    pure
//!  sources/        tracer/ (BPF) ─▶ TraceEvent · sampler: procfs/ every 2 s ─▶ Snapshot · cgroup/ ─▶ Count
//!    │
//!  model/          event, process, cgroup, clock    plain values
//! ```
//!
//! Uses point down; a source may return values of [`explain`]. An OOM kill goes source -> event -> correlate -> history
//! (ancestors) -> explain -> report -> session. The module does not depend on sessions, replies or the agent.

mod attribution;
mod explain;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod handle;
mod message;
mod model;
mod report;
pub(crate) mod setup;
mod sources;
mod task;

pub(crate) use attribution::correlate::Confidence;
pub(crate) use attribution::correlate::Victim as TracedVictim;
pub(crate) use attribution::kill_event::{DaemonKill, KillEvent};
pub(crate) use attribution::memory_throttled::MemoryThrottled;
pub(crate) use attribution::memory_warning::MemoryWarning;
pub(crate) use attribution::oom_report::{KillEvidence, OomReport, ProcessInfo};
pub(crate) use attribution::rate_limit::RateLimiter;
pub(crate) use attribution::sigkill::{SigkillCause, SigkillOf};
#[cfg(test)]
pub(crate) use explain::MemoryFacts;
pub(crate) use explain::{Explanation, LimitHit, LimitScope};
pub(crate) use handle::{Monitor, SigkillCauses};
pub(crate) use message::MonitorEvent;
pub(crate) use model::clock::{self, boot_ns};
pub(crate) use model::detection::{MonitorStatus, Scope, TracerKind};
pub(crate) use model::event::Actor;
pub(crate) use model::process::ProcessKey;
pub(crate) use model::time::{parse_rfc3339, utc};
pub(crate) use model::units::mib as in_mib;
pub(crate) use report::journal::{Journal, JournalPath};
pub(crate) use report::journal_reader::JournalFile;
pub(crate) use report::plot;
pub(crate) use report::recorder;
pub(crate) use report::schema::{self, RecordsLost, Unattributed};
pub(crate) use setup::{BpfPolicy, MonitorSetup, ScopeRequest};
pub(crate) use sources::cgroup::charge::OwnCharge;
pub(crate) use sources::cgroup::memory_cgroup;
pub(crate) use sources::cgroup::{Cgroup, CgroupRoot};
pub(crate) use sources::node;
pub(crate) use sources::procfs::tmpfs_mounts;
pub(crate) use sources::procfs::{ProcRoot, time_scan};
pub(crate) use sources::tracer::{self, ProgramLog};
