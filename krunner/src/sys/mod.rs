//! What needs `unsafe`: calls that neither std nor nix offers as safe functions.

mod bpf_call;
mod child_setup;
mod environment;
mod fds;
pub mod memory;
mod privilege;
mod proctitle;
mod pty;
mod queues;
mod readiness;
mod reap;

pub use bpf_call::try_bpf;
pub use child_setup::{never_kill_this_process, oom_score_adj, start_with_oom_score_adj};
pub use environment::initial_environment;
pub use fds::{close_on_exec_from, pollable};
pub use privilege::{Capabilities, Capability, drop_added, effective, permitted, raise_permitted, was_elevated};
pub use proctitle::set_process_title;
pub use pty::{lead_session_on_stdin, set_window_size};
pub use queues::{readable_bytes, unsent_bytes};
pub use readiness::readable;
pub use reap::{Ended, ended_child, reap};
