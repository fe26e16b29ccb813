//! The contents of the object: one file per program, and shared code.
//!
//! The programs only filter events, read kernel memory and write records. User space decides which SIGKILL was an OOM
//! kill, which exits belong to it, and which records are duplicates.
#![expect(
    clippy::inline_always,
    reason = "one program per function, as the verifier follows it; a call costs a stack frame"
)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "registers have 64 bits, and the field types say how many of them are significant"
)]
#![expect(clippy::needless_pass_by_value, reason = "the raw tracepoint macro passes the context by value")]

mod address;
mod base;
mod cgroup;
mod cgroup_filter;
mod cgroup_mkdir;
#[cfg(feature = "namespaces")]
mod daemon_sigkill;
mod direct;
mod globals;
mod limit;
mod log;
mod mark_victim;
mod process_exec;
mod process_exit;
mod process_fork;
mod ring;
mod sigkill;
mod task;
