//! `signal_generate`, only for `krunner node`: records the SIGKILLs that a user-space OOM killer of the host sends to another
//! cgroup.
//!
//! It is a program of its own: in `sigkill`, verifiers would follow the walk to the limit for this sender as well, for which Linux
//! 6.1 takes more than a minute on an emulated processor.

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use krunner_common::{Kill, Kind, source};

use super::address::Address;
use super::limit::Limit;
use super::ring::{self, Wake};
use super::sigkill::{SEND_SIG_PRIV, SIGKILL, daemon_of, has_effect};
use super::{cgroup, task};

#[raw_tracepoint(tracepoint = "signal_generate")]
fn daemon_sigkill(ctx: RawTracePointContext) -> Option<()> {
    let outcome = ctx.arg::<u32>(4) as u8;
    if ctx.arg::<i32>(0) != SIGKILL || ctx.arg::<u64>(1) == SEND_SIG_PRIV || !has_effect(outcome) {
        return None;
    }
    let (sender, task) = (task::current(), Address::new(ctx.arg(2)));
    let sender_daemon = daemon_of(sender);
    if sender_daemon == 0 || !is_of_host(sender, task) {
        return None;
    }
    let victim = task::describe(task)?;
    let (sender_tgid, sender_comm) = task::name(sender);
    let comm = task::leader(task).map(task::comm).unwrap_or_default();
    let mut entry = ring::reserve::<Kill>(Kind::Kill)?;
    entry.write(Kill {
        kind: Kind::Kill as u32,
        source: source::USER,
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
        limit_cgroup_id: Limit::NONE.cgroup_id,
        limit_pages: Limit::NONE.pages,
        limit_usage_pages: Limit::NONE.usage_pages,
        limit_kind: Limit::NONE.kind,
        sender_daemon,
        comm,
        sender_comm,
        namespaces: task::namespaces(task),
    });
    entry.submit(Wake::Now.flags());
    Some(())
}

/// Whether the sender runs on the host and kills a process of another cgroup. Anyone may name a program like a user-space OOM
/// killer: in a container, or for processes of theirs.
#[inline(always)]
fn is_of_host(sender: Address, victim: Address) -> bool {
    task::is_in_initial_namespace(sender) && cgroup::id_of(sender) != cgroup::id_of(victim)
}
