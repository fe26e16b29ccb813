//! `signal_generate`: records every SIGKILL to one of our processes, with the victim's memory usage, which is no longer
//! available when it exits. For `krunner node`, which traces all tenants, only those that the kernel sends (`daemon_sigkill` has
//! the others that it wants).
//!
//! Fires for every signal on the machine; the first check discards nearly all of them.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use krunner_common::{Kill, Kind, OomDaemon, outcome, source};

use super::address::Address;
use super::globals::mark_victim_is_pid;
use super::limit::Limit;
use super::ring::{self, Wake};
use super::{cgroup, mark_victim, task};

pub(super) const SIGKILL: i32 = 9;

/// `SEND_SIG_PRIV`, passed instead of a pointer to a siginfo if the kernel is the sender
/// (include/linux/sched/signal.h).
pub(super) const SEND_SIG_PRIV: u64 = 1;

#[raw_tracepoint(tracepoint = "signal_generate")]
fn sigkill(ctx: RawTracePointContext) -> Option<()> {
    if ctx.arg::<i32>(0) != SIGKILL {
        return None;
    }
    let from_kernel = ctx.arg::<u64>(1) == SEND_SIG_PRIV;
    let outcome = ctx.arg::<u32>(4) as u8;
    if !from_kernel && !is_of_interest(outcome) {
        return None;
    }
    let task = Address::new(ctx.arg(2));
    let victim = task::describe(task)?;
    if from_kernel && mark_victim_is_pid() {
        mark_victim::expect(task, victim);
    }
    let mut entry = ring::reserve::<Kill>(Kind::Kill)?;
    // First, and kept in the record, whose content verifiers do not follow: each state before the walk and each of its outcomes
    // would be checked with all the rest.
    let limit = kept(&mut entry, if from_kernel { Limit::tightest(task) } else { Limit::NONE });
    let (sender_tgid, sender_comm) = task::name(task::current());
    let sender_daemon = if from_kernel || sender_tgid != 0 { 0 } else { daemon_of(task::current()) };
    let from = if from_kernel { source::KERNEL } else { source::USER };
    let comm = task::leader(task).map(task::comm).unwrap_or_default();
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
        sender_daemon,
        comm,
        sender_comm,
        namespaces: task::namespaces(task),
    });
    entry.submit(Wake::Now.flags());
    Some(())
}

/// Writes a limit to its members of the record and reads it again.
#[inline(always)]
fn kept(entry: &mut MaybeUninit<Kill>, limit: Limit) -> Limit {
    let kill = entry.as_mut_ptr();
    // SAFETY: members of a record that is reserved, written before they are read.
    unsafe {
        (&raw mut (*kill).limit_cgroup_id).write_volatile(limit.cgroup_id);
        (&raw mut (*kill).limit_pages).write_volatile(limit.pages);
        (&raw mut (*kill).limit_usage_pages).write_volatile(limit.usage_pages);
        (&raw mut (*kill).limit_kind).write_volatile(limit.kind);
        Limit {
            cgroup_id: (&raw const (*kill).limit_cgroup_id).read_volatile(),
            pages: (&raw const (*kill).limit_pages).read_volatile(),
            usage_pages: (&raw const (*kill).limit_usage_pages).read_volatile(),
            kind: (&raw const (*kill).limit_kind).read_volatile(),
        }
    }
}

/// The code of the user-space OOM killer that a task belongs to; 0 if it belongs to none. No other name leaves the kernel.
#[inline(always)]
pub(super) fn daemon_of(task: Address) -> u32 {
    let comm = task::leader(task).and_then(task::comm_words).unwrap_or_default();
    let [first, second, third, fourth] = OomDaemon::ALL;
    match () {
        () if first.is_named(comm) => 1,
        () if second.is_named(comm) => 2,
        () if third.is_named(comm) => 3,
        () if fourth.is_named(comm) => 4,
        () => 0,
    }
}

/// Whether a SIGKILL from user space is recorded. One without an effect is not: anyone can send thousands a second to a zombie of
/// theirs, or to the init process of their PID namespace, and would fill a ring buffer that others need.
#[inline(always)]
fn is_of_interest(outcome: u8) -> bool {
    cfg!(not(feature = "namespaces")) && has_effect(outcome)
}

#[inline(always)]
pub(super) fn has_effect(outcome: u8) -> bool {
    outcome != outcome::IGNORED && outcome != outcome::ALREADY_PENDING
}
