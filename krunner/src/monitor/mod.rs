//! Which process did the kernel kill for memory, started by whom, how big was it, how sure are we.
//!
//! ```text
//! tracer ──TraceEvent──▶ ┌────────────────────────────┐
//! (BPF, or elsewhere)    │ engine: join, history,     │ ──Tell──▶ session, `krunner monitor`
//! sampler ──Snapshot───▶ │         storm, report      │
//! (/proc, every 2 s)     └────────────────────────────┘
//! ```
//!
//! A tracer passes plain values; what they mean is decided by pure code: [`join`] makes verdicts of events,
//! [`history`] knows who started whom, [`report`] what is told. [`task`] is the task around it, [`handle`] what others hold of it. Knows nothing
//! of sessions, replies or the agent.

mod attribution;
mod cgroup;
pub mod clock;
mod engine;
mod event;
mod handle;
mod history;
mod infer;
mod join;
pub mod means;
mod pace;
mod process;
mod procfs;
mod report;
mod sampler;
mod storm;
mod task;
pub mod tracer;

pub use attribution::sigkill::{SigkillCause, SigkillOf};
pub(crate) use cgroup::charge::OwnCharge;
pub use cgroup::{Cgroup, CgroupError, CgroupFacts, CgroupRoot, Reading};
pub(crate) use clock::boot_ns;
pub use engine::Notice;
pub use event::{
    Actor, CgroupMade, Death, Exec, Exit, Fork, Kill, KillSource, Mark, MemoryAtKill, ProcessKey, Trace, TraceEvent,
};
pub use handle::{Deaths, Monitor, SigkillCauses, Tell, Watching};
pub use join::{Confidence, Joiner, Verdict, Victim};
pub use means::{By, Means, Wanted};
pub use process::{Cmdline, End, Glance, Observed, ScanCost, Snapshot};
pub use procfs::{ProcRoot, ProcView, time_look};
pub(crate) use report::utc;
pub use report::{Dead, Report, Seen};
pub use storm::Suppressed;
pub use tracer::{ProgramLog, Scope, TracerKind};
