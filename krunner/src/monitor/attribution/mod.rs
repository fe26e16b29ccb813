//! Attributes OOM kills: which process was killed, by whom, and what the reader of a report has to know about it.
//!
//! Pure: events, snapshots and the time are parameters; nothing here reads files.
//!
//! ```text
//!  TraceEvent ─▶ correlate: mark + kill + exit ─┐
//!  Count, no tracer ─▶ infer: who disappeared ──┼─▶ engine ─▶ rate_limit ─▶ kill_event
//!  Snapshot, fork, exec ─▶ history: ancestors ──┤
//!  SIGKILL ─▶ sigkill: its cause ───────────────┘
//! ```

pub(in crate::monitor) mod correlate;
pub(in crate::monitor) mod engine;
pub(in crate::monitor) mod history;
pub(in crate::monitor) mod infer;
pub(in crate::monitor) mod kill_accounting;
pub(in crate::monitor) mod kill_event;
pub(in crate::monitor) mod memory_throttled;
pub(in crate::monitor) mod memory_warning;
pub(in crate::monitor) mod oom_report;
pub(in crate::monitor) mod rate_limit;
pub(in crate::monitor) mod sigkill;
