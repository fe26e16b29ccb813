//! Code that needs `unsafe`: system calls without a safe wrapper in std or nix.

#![expect(unsafe_code, reason = "each block names the invariant that it keeps")]

mod bpf_call;
mod child_setup;
mod environment;
mod fds;
mod file_capabilities;
pub(crate) mod memory;
mod namespaces;
mod privilege;
mod proctitle;
mod pty;
mod queues;
mod readiness;
mod reap;
mod signal_sender;

pub(crate) use bpf_call::try_bpf;
pub(crate) use child_setup::{never_kill_this_process, oom_score_adj, report_pid, start_in, start_with_oom_score_adj};
pub(crate) use environment::initial_environment;
pub(crate) use fds::{close_on_exec_from, pollable};
pub(crate) use file_capabilities::FileCapabilities;
pub(crate) use namespaces::parent_of_pid_namespace;
pub(crate) use privilege::{Capabilities, Capability, drop_added, raise_permitted, was_elevated};
pub(crate) use proctitle::set_process_title;
pub(crate) use pty::{lead_session_on_stdin, set_window_size};
pub(crate) use queues::{readable_bytes, tcp_idle_time, unsent_bytes};
pub(crate) use readiness::readable;
pub(crate) use reap::{ExitedChild, exited_child, exited_child_with, reap};
pub(crate) use signal_sender::{SenderNote, SignalSender};
