//! Where events and readings come from. All files of the kernel that the monitor reads are read here.
//!
//! ```text
//!  tracer/    eBPF programs ─▶ TraceEvent
//!  sampler    a thread, paced by schedule ─▶ Snapshot, PartialScan
//!    └ procfs/    processes and mounts
//!  node/      the socket of `krunner node` ─▶ NodeEvent
//!  cgroup/    limits, usage, counters of OOM kills
//! ```

pub(in crate::monitor) mod cgroup;
pub(crate) mod node;
mod page_size;
pub(in crate::monitor) mod procfs;
pub(in crate::monitor) mod sampler;
pub(super) mod schedule;
pub(crate) mod tracer;
