//! `sched_process_fork`: a new process, so that one which lives for 20 ms still has a parent.
//!
//! Fires in the parent, before the child runs. Threads are left out.

use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use krunner_common::{Fork, Kind};

use super::address::{Address, Place, View, Window};
use super::direct::Direct;
use super::globals::{direct_reads, offset};
use super::log::log_line;
use super::ring::{self, Wake};
use super::{fence, task};

/// What the child's `task_struct` says.
struct Child {
    leader: Address,
    /// Thread id in the init namespace.
    init_tid: u32,
    pid: Address,
    parent: Address,
    start_boot_ns: u64,
}

#[raw_tracepoint(tracepoint = "sched_process_fork")]
fn process_fork(ctx: RawTracePointContext) -> Option<()> {
    let address = Address::new(ctx.arg(1));
    let mut window = Window::empty();
    let child = match window.read(address) {
        Some(view) => {
            let child = together(&view);
            if child.is_none() {
                log_line!(member_outside_window(offset!(task_window)));
            }
            child?
        }
        None => scattered(address)?,
    };
    if child.leader != address {
        return None;
    }
    if direct_reads() { record(Direct::current(), child, address) } else { record(task::current(), child, address) }
}

#[inline(always)]
fn record<P: Place>(current: P, child: Child, address: Address) -> Option<()> {
    if !fence::has_either(current, address) {
        return None;
    }
    let (child_tgid, parent_tgid) = ids(current, &child)?;
    let record =
        Fork { kind: Kind::Fork as u32, parent_tgid, child_tgid, reserved: 0, start_boot_ns: child.start_boot_ns };
    ring::send(Kind::Fork, &record, Wake::Later { time_boot_ns: child.start_boot_ns });
    Some(())
}

#[inline(always)]
fn together(view: &View<'_>) -> Option<Child> {
    Some(Child {
        leader: Address::new(view.u64(offset!(task_group_leader))?),
        init_tid: view.u32(offset!(task_pid))?,
        pid: Address::new(view.u64(offset!(task_thread_pid))?),
        parent: Address::new(view.u64(offset!(task_real_parent)).unwrap_or(0)),
        start_boot_ns: view.u64(offset!(task_start_boottime))?,
    })
}

#[inline(always)]
fn scattered(child: Address) -> Option<Child> {
    Some(Child {
        leader: child.pointer(offset!(task_group_leader))?,
        init_tid: child.u32(offset!(task_pid))?,
        pid: child.pointer(offset!(task_thread_pid))?,
        parent: Address::new(child.u64(offset!(task_real_parent)).unwrap_or(0)),
        start_boot_ns: child.u64(offset!(task_start_boottime))?,
    })
}

/// The ids of the child and of the group of its parent, which is 0 if it is not visible. The parent is not
/// always the caller: with `CLONE_PARENT` it is the caller's parent. The number alone says nothing
/// about whose it is, so it is not fenced.
#[inline(always)]
fn ids<P: Place>(current: P, child: &Child) -> Option<(u32, u32)> {
    let by_caller = child.parent == current.address();
    if task::everything_is_ours() {
        let parent = if by_caller { current.u32(offset!(task_tgid)) } else { child.parent.u32(offset!(task_tgid)) };
        return Some((child.init_tid, parent.unwrap_or(0)));
    }
    if by_caller && let Some(parent) = task::leader(current).and_then(task::id_again) {
        return Some((task::id_of_child(child.pid)?, parent));
    }
    // A parent of another namespace, or the first task that is seen here and tells what ours is.
    let tgid = task::id_of(child.pid)?;
    Some((tgid, task::leader(child.parent).and_then(task::id_again).unwrap_or(0)))
}
