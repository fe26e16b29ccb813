//! `sched_process_fork`: a new process, so that one which lives for 20 ms still has a parent.
//!
//! Fires in the parent, before the child runs. Threads are left out.

use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use krunner_common::{Fork, Kind};

use super::address::Address;
use super::globals::offset;
use super::ring::{self, Wake};
use super::task;

#[raw_tracepoint(tracepoint = "sched_process_fork")]
fn process_fork(ctx: RawTracePointContext) -> Option<()> {
    let child = Address::new(ctx.arg(1));
    if task::leader(child)? != child {
        return None;
    }
    let child_tgid = task::id(child)?;
    let record = Fork {
        kind: Kind::Fork as u32,
        // Not always the caller's: with CLONE_PARENT it is the caller's parent.
        parent_tgid: child.pointer(offset!(task_real_parent)).and_then(task::group_id).unwrap_or(0),
        child_tgid,
        reserved: 0,
        start_boot_ns: task::start(child)?,
    };
    ring::send(Kind::Fork, &record, Wake::Later);
    Some(())
}
