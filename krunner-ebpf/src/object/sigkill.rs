//! `signal_generate`: records every SIGKILL to one of our processes, with the victim's memory usage, which is no longer
//! available when it exits.
//!
//! Fires for every signal on the machine; the first check discards nearly all of them.

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use krunner_common::{Kill, Kind, source};

use super::address::Address;
use super::globals::mark_victim_is_pid;
use super::limit::Limit;
use super::ring::{self, Wake};
use super::{cgroup, mark_victim, task};

const SIGKILL: i32 = 9;

/// `SEND_SIG_PRIV`, passed instead of a pointer to a siginfo if the kernel is the sender
/// (include/linux/sched/signal.h).
const SEND_SIG_PRIV: u64 = 1;

#[raw_tracepoint(tracepoint = "signal_generate")]
fn sigkill(ctx: RawTracePointContext) -> Option<()> {
    if ctx.arg::<i32>(0) != SIGKILL {
        return None;
    }
    let task = Address::new(ctx.arg(2));
    let victim = task::describe(task)?;
    let from_kernel = ctx.arg::<u64>(1) == SEND_SIG_PRIV;
    if from_kernel && mark_victim_is_pid() {
        mark_victim::expect(task, victim);
    }
    let limit = if from_kernel { Limit::tightest(task) } else { Limit::NONE };
    let (sender_tgid, sender_comm) = task::name(task::current());
    let (from, outcome) = (if from_kernel { source::KERNEL } else { source::USER }, ctx.arg::<u32>(4) as u8);
    let comm = task::leader(task).map(task::comm).unwrap_or_default();
    let mut entry = ring::reserve::<Kill>(Kind::Kill)?;
    // Written in place: the stack has no space for a copy.
    entry.write(Kill {
        kind: Kind::Kill as u32,
        source: from,
        outcome,
        oom_score_adj: task::oom_score_adj(task),
        // SAFETY: a helper without arguments.
        time_boot_ns: unsafe { bpf_ktime_get_boot_ns() },
        victim,
        sender_tgid,
        uid: task::uid(task),
        memory: task::memory(task),
        memory_map: task::memory_map(task),
        cgroup_id: cgroup::id_of(task).unwrap_or(0),
        limit_cgroup_id: limit.cgroup_id,
        limit_pages: limit.pages,
        limit_usage_pages: limit.usage_pages,
        limit_kind: limit.kind,
        reserved: 0,
        comm,
        sender_comm,
        namespaces: task::namespaces(task),
    });
    entry.submit(Wake::Now.flags());
    Some(())
}
