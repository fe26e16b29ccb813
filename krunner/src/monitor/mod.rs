//! OOM monitoring: which process the kernel's OOM killer killed, who started it, its size, and the confidence of the
//! answer.
//!
//! ```text
//! tracer ──TraceEvent──▶ ┌────────────────────────────┐
//! (BPF, or elsewhere)    │ engine: correlate, history,│ ──MonitorEvent──▶ session, `krunner monitor`
//! sampler ──Snapshot───▶ │         rate limit, report │
//! (/proc, every 2 s)     └────────────────────────────┘
//! ```
//!
//! A tracer emits plain values, which pure code interprets: [`correlate`] attributes kills, [`history`] has the ancestors,
//! [`report`] the text. [`task`] is the async task around it, [`handle`] its handle. The module does not depend on sessions, replies or the agent.

mod attribution;
mod cgroup;
pub(crate) mod clock;
mod correlate;
mod engine;
mod event;
mod explain;
mod handle;
mod history;
mod infer;
mod model;
mod process;
mod procfs;
mod rate_limit;
mod report;
mod sampler;
mod schedule;
pub(crate) mod setup;
mod task;
pub(crate) mod tracer;

pub(crate) use attribution::sigkill::{SigkillCause, SigkillOf};
pub(crate) use cgroup::charge::OwnCharge;
pub(crate) use cgroup::{Cgroup, CgroupRoot};
pub(crate) use clock::boot_ns;
pub(crate) use correlate::Confidence;
pub(crate) use engine::KillEvent;
pub(crate) use handle::{Monitor, MonitorEvent, MonitorStatus, SigkillCauses};
pub(crate) use procfs::tmpfs_mounts;
pub(crate) use procfs::{ProcRoot, time_scan};
pub(crate) use report::journal::{Journal, JournalPath};
pub(crate) use report::journal_reader::JournalFile;
pub(crate) use report::plot;
pub(crate) use report::recorder;
pub(crate) use report::schema::{self, RecordsLost, Unattributed};
pub(crate) use report::{MemoryWarning, OomReport};
pub(crate) use report::{mib as in_mib, parse_rfc3339, utc};
pub(crate) use setup::{BpfPolicy, MonitorSetup, ScopeRequest};
pub(crate) use tracer::{ProgramLog, Scope, TracerKind};
