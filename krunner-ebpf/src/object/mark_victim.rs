//! `mark_victim`: the OOM killer has chosen a victim.
//!
//! The first argument is the task or, in kernels before 2025 (5.10.235, 6.1.130, 6.6.80 and similar), a thread id in
//! the initial PID namespace, which does not say whether the task is ours. No helper looks up a task by id. But the
//! kernel sends the SIGKILL right before the mark, from the same thread (`__oom_kill_process` in `mm/oom_kill.c`), so
//! the `sigkill` program stores the victim in [`PENDING`]. A mark without an entry belongs to another tenant or to a
//! process that was already exiting.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns};
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::RawTracePointContext;
use krunner_common::{Kind, Mark, PENDING_ENTRIES, Task};

use super::address::{Address, KernelPointer};
use super::globals::{mark_victim_is_pid, offset};
use super::ring::{self, Wake};
use super::task;

/// The victim of the last kernel SIGKILL of a thread.
#[repr(C)]
#[derive(Clone, Copy)]
struct Pending {
    victim: Task,
    /// Thread id in the initial PID namespace; does not leave the kernel. 64 bits wide to avoid padding.
    init_tid: u64,
}

/// Keyed by the sender's `pid_tgid` in the initial PID namespace.
#[map]
static PENDING: LruHashMap<u64, Pending> = LruHashMap::with_max_entries(PENDING_ENTRIES, 0);

/// Stores the victim of a SIGKILL for the mark that may follow.
#[inline(always)]
pub(super) fn expect(task: Address, victim: Task) {
    let Some(init_tid) = task.u32(offset!(task_pid)) else { return };
    let pending = Pending { victim, init_tid: u64::from(init_tid) };
    // If the insert fails, the mark is lost and the kill is reported on other evidence.
    let _ = PENDING.insert(bpf_get_current_pid_tgid(), pending, 0);
}

#[raw_tracepoint(tracepoint = "mark_victim")]
fn mark_victim(ctx: RawTracePointContext) -> Option<()> {
    let victim = if mark_victim_is_pid() { expected(ctx.arg(0))? } else { task::describe(Address::new(ctx.arg(0)))? };
    let (trigger_tgid, trigger_comm) = task::name(task::current());
    let record = Mark {
        kind: Kind::Mark as u32,
        trigger_tgid,
        // SAFETY: a helper without arguments.
        time_boot_ns: unsafe { bpf_ktime_get_boot_ns() },
        victim,
        trigger_comm,
    };
    ring::send(Kind::Mark, &record, Wake::Now);
    Some(())
}

/// The victim with this thread id, if the current thread has just killed it.
#[inline(always)]
fn expected(init_tid: u32) -> Option<Task> {
    let sender = bpf_get_current_pid_tgid();
    // SAFETY: only the current thread writes under its key. Another thread may reuse the slot if it is the oldest; the
    // id check below detects that.
    let pending = unsafe { PENDING.get(sender) }?;
    let (victim, matches) = (pending.victim, pending.init_tid == u64::from(init_tid));
    let _ = PENDING.remove(sender);
    matches.then_some(victim)
}
