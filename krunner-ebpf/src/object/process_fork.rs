//! `sched_process_fork`: records new processes, so that the parent of a short-lived process is known.
//!
//! Fires in the parent, before the child runs. Threads are not recorded.

use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use krunner_common::{Fork, Kind};

use super::address::{Address, KernelPointer, View, Window};
use super::direct::Direct;
use super::globals::{direct_reads, offset};
use super::log::log_line;
use super::ring::{self, Wake};
use super::{cgroup_filter, task};

/// Members of the child's `task_struct`.
struct Child {
    leader: Address,
    /// Thread id in the initial PID namespace.
    init_tid: u32,
    pid: Address,
    parent: Address,
    start_boot_ns: u64,
}

#[raw_tracepoint(tracepoint = "sched_process_fork")]
fn process_fork(ctx: RawTracePointContext) -> Option<()> {
    let address = Address::new(ctx.arg(1));
    // Checked first, because most forks on a machine are not ours.
    let is_ours = if direct_reads() {
        cgroup_filter::matches_either(Direct::current(), address)
    } else {
        cgroup_filter::matches_either(task::current(), address)
    };
    if !is_ours {
        return None;
    }
    let mut window = Window::empty();
    let child = match window.read(address) {
        Some(view) => {
            let child = from_window(&view);
            if child.is_none() {
                log_line!(member_outside_window(offset!(task_window)));
            }
            child?
        }
        None => member_by_member(address)?,
    };
    if child.leader != address {
        return None;
    }
    if direct_reads() { record(Direct::current(), child) } else { record(task::current(), child) }
}

#[inline(always)]
fn record<P: KernelPointer>(current: P, child: Child) -> Option<()> {
    let (child_tgid, parent_tgid) = ids(current, &child)?;
    let record =
        Fork { kind: Kind::Fork as u32, parent_tgid, child_tgid, reserved: 0, start_boot_ns: child.start_boot_ns };
    ring::send(Kind::Fork, &record, Wake::Later { time_boot_ns: child.start_boot_ns });
    Some(())
}

#[inline(always)]
fn from_window(view: &View<'_>) -> Option<Child> {
    Some(Child {
        leader: Address::new(view.u64(offset!(task_group_leader))?),
        init_tid: view.u32(offset!(task_pid))?,
        pid: Address::new(view.u64(offset!(task_thread_pid))?),
        parent: Address::new(view.u64(offset!(task_real_parent)).unwrap_or(0)),
        start_boot_ns: view.u64(offset!(task_start_boottime))?,
    })
}

#[inline(always)]
fn member_by_member(child: Address) -> Option<Child> {
    Some(Child {
        leader: child.pointer(offset!(task_group_leader))?,
        init_tid: child.u32(offset!(task_pid))?,
        pid: child.pointer(offset!(task_thread_pid))?,
        parent: Address::new(child.u64(offset!(task_real_parent)).unwrap_or(0)),
        start_boot_ns: child.u64(offset!(task_start_boottime))?,
    })
}

/// The process ids of the child and of its parent; the latter is 0 if it is not visible. The parent is not always the
/// caller: with `CLONE_PARENT` it is the caller's parent. The parent's id discloses nothing about it, so the cgroup
/// filter is not applied to it.
#[inline(always)]
fn ids<P: KernelPointer>(current: P, child: &Child) -> Option<(u32, u32)> {
    let by_caller = child.parent == current.address();
    if task::is_unfiltered() {
        let parent = if by_caller { current.u32(offset!(task_tgid)) } else { child.parent.u32(offset!(task_tgid)) };
        return Some((child.init_tid, parent.unwrap_or(0)));
    }
    if by_caller && let Some(parent) = task::leader(current).and_then(task::id_at_known_level) {
        return Some((task::id_of_child(child.pid)?, parent));
    }
    // The parent is in another namespace, or the level of our namespace is not known yet.
    let tgid = task::id_of(child.pid)?;
    Some((tgid, task::leader(child.parent).and_then(task::id_at_known_level).unwrap_or(0)))
}
