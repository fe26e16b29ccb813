//! `sched_process_fork`: a new process, so that one which lives for 20 ms still has a parent.
//!
//! Fires in the parent, before the child runs. Threads are left out.

use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use krunner_common::{Fork, Kind, Task};

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
    let tgid = task::id(child)?;
    // Not always the caller: with CLONE_PARENT it is the caller's parent.
    let parent = child.pointer(offset!(task_real_parent)).and_then(task::leader);
    let start_boot_ns = task::start(child)?;
    let record = Fork {
        kind: Kind::Fork as u32,
        parent_tgid: parent.and_then(task::id_again).unwrap_or(0),
        // The kernel read the clock a moment ago; one more reading costs more than it tells.
        time_boot_ns: start_boot_ns,
        child: Task { tgid, tid: tgid, start_boot_ns },
        comm: task::comm(child),
    };
    ring::send(Kind::Fork, &record, Wake::Later);
    Some(())
}
