//! `signal_generate`: every SIGKILL to a process of ours, with the victim's figures, since its
//! memory is gone when it exits.
//!
//! Fires for each signal on the machine, so the first line decides nearly all of them.

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use krunner_common::{Kill, Kind, source};

use super::address::Address;
use super::globals::mark_victim_is_pid;
use super::ring::{self, Wake};
use super::{cgroup, mark_victim, task};

const SIGKILL: i32 = 9;

/// `SEND_SIG_PRIV` in place of a pointer to a siginfo: the kernel itself (include/linux/sched/signal.h).
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
    let (sender_tgid, sender_comm) = task::name(task::current());
    let record = Kill {
        kind: Kind::Kill as u32,
        source: if from_kernel { source::KERNEL } else { source::USER },
        outcome: ctx.arg::<u32>(4) as u8,
        oom_score_adj: task::oom_score_adj(task),
        // SAFETY: a helper without arguments.
        time_boot_ns: unsafe { bpf_ktime_get_boot_ns() },
        victim,
        sender_tgid,
        uid: task::uid(task),
        memory: task::memory(task),
        memory_map: task::memory_map(task),
        cgroup_id: cgroup::id_of(task).unwrap_or(0),
        comm: task::leader(task).map(task::comm).unwrap_or_default(),
        sender_comm,
    };
    ring::send(Kind::Kill, &record, Wake::Now);
    Some(())
}
