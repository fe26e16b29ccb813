//! Which process did the kernel kill for memory, started by whom, how big was it, how sure are we.
//!
//! ```text
//! tracer (BPF, or a process elsewhere) ──TraceEvent──▶ join ──Verdict──▶ (report)
//! ```
//!
//! A tracer passes plain values; what they mean is decided by pure code here. Knows nothing of sessions,
//! replies or the agent.

mod cgroup;
mod event;
mod join;
mod process;
pub mod tracer;

pub use cgroup::{Cgroup, CgroupError, CgroupFacts, CgroupRoot, Reading};
pub use event::{Actor, Exec, Exit, Fork, Kill, KillSource, Mark, MemoryAtKill, ProcessKey, Trace, TraceEvent};
pub use join::{Confidence, Joiner, Verdict, Victim};
pub use process::{Cmdline, Observed, Snapshot};
