//! What is in the object: one file per program, and what they share.
//!
//! The programs filter, read and write records; they decide nothing. Which SIGKILL was an OOM kill,
//! which exits belong to it and what was seen twice is user space's to find out.
#![expect(
    clippy::inline_always,
    reason = "one program per function, as the verifier follows it; a call costs a stack frame"
)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "registers have 64 bits, and the fields say how many of them count"
)]
#![expect(clippy::needless_pass_by_value, reason = "the macro for raw tracepoints hands the context over")]

mod address;
mod base;
mod cgroup;
mod cgroup_mkdir;
mod direct;
mod fence;
mod globals;
mod log;
mod mark_victim;
mod process_exec;
mod process_exit;
mod process_fork;
mod ring;
mod sigkill;
mod task;
