//! `mark_victim`: the OOM killer has chosen.
//!
//! Its first argument is the task, or before 2025 (5.10.235, 6.1.130, 6.6.80 and their like) a thread
//! id of the init namespace, which says nothing about whose it is. There is no helper to find the task
//! of an id, but the kernel sends the SIGKILL just before the mark, from the same thread
//! (`__oom_kill_process` in `mm/oom_kill.c`): the SIGKILL's program leaves a note, and a mark without one is
//! either not ours or of a process that was exiting anyway.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns};
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::RawTracePointContext;
use krunner_common::{Kind, Mark, PENDING_ENTRIES, Task};

use super::address::{Address, Place};
use super::globals::{mark_victim_is_pid, offset};
use super::ring::{self, Wake};
use super::task;

/// The victim of the last kernel SIGKILL of a thread.
#[repr(C)]
#[derive(Clone, Copy)]
struct Pending {
    victim: Task,
    /// Thread id in the init namespace; stays in the kernel. 64 bits, so that nothing is padded.
    init_tid: u64,
}

/// By the sender's `pid_tgid` in the init namespace.
#[map]
static PENDING: LruHashMap<u64, Pending> = LruHashMap::with_max_entries(PENDING_ENTRIES, 0);

/// Notes who was just killed, for the mark that may follow.
#[inline(always)]
pub(super) fn expect(task: Address, victim: Task) {
    let Some(init_tid) = task.u32(offset!(task_pid)) else { return };
    let pending = Pending { victim, init_tid: u64::from(init_tid) };
    // Without the note the mark goes missing, and the kill is then reported on other evidence.
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

/// The victim with that thread id, if this thread has just killed it.
#[inline(always)]
fn expected(init_tid: u32) -> Option<Task> {
    let sender = bpf_get_current_pid_tgid();
    // SAFETY: only this thread writes under its own key, and it is here now. Another one may take the
    // slot over if it is the oldest; what is read is then checked against the id.
    let pending = unsafe { PENDING.get(sender) }?;
    let (victim, matches) = (pending.victim, pending.init_tid == u64::from(init_tid));
    let _ = PENDING.remove(sender);
    matches.then_some(victim)
}
