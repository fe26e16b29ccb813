//! `krunner node`: one tracer for a machine. It sees every OOM kill once and exactly, and tells each container of its own.
//!
//! ```text
//!  monitor, scope all ─ OomReport ─▶ serve ─┬─▶ peers: scope ─ NodeKill ─▶ connection ═ socket ═▶ a runner without eBPF
//!                                            ├─▶ node_log: JSON lines, a budget for each container
//!                                            ├─▶ metrics: for Prometheus, from kill_counts
//!                                            └─▶ pod_events: Kubernetes Events, if wanted
//!  identity   who connected, and what a process is: from the kernel and /proc
//!  names      pod, container, unit: from the cgroup's path and files
//! ```
//!
//! **Who may see what.** The kernel tells the PID of the process that connected (`SO_PEERCRED`, `SO_PEERPIDFD`); nothing that the
//! peer says is used. A peer sees the kills in its own PID namespace and below; in the host's PID namespace those in its memory
//! cgroup and below. Another process is named to it only if it is within the same [`scope`]. A peer that fits neither is refused
//! with the reason. The connection ends with the process that made it, even if another one has the socket by then.
//!
//! **One tenant's storm is its own.** Every peer has a queue; if it is full, its kills are counted and it is told the number.
//! Connections are limited for each scope, log lines for each container. Nothing here waits for a peer, or for stdout.
//!
//! The node keeps no state: what happens while it is away is inferred by the runners, which return to it.

mod connection;
mod identity;
mod kill_counts;
mod metrics;
mod name_files;
mod names;
mod node_log;
mod notify;
mod peers;
mod pod_events;
mod scope;
mod serve;
mod socket;

pub(crate) use serve::{NodeConfig, serve};
