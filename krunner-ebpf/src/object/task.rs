//! Task lookups: whether a task is ours, its ids, start time and memory usage.
//!
//! A task has an id in its own PID namespace and in every ancestor namespace (`numbers[]` of `struct pid`, indexed by
//! level). It is ours if the entry at our level belongs to our namespace; that entry also has its id in our /proc. For
//! every other task the functions return `None`, and no information about it leaves the kernel.

use core::cell::UnsafeCell;

use aya_ebpf::helpers::bpf_get_current_task;
use krunner_common::{COMM_BYTES, LEVEL_UNKNOWN, Memory, NamespaceId, NamespaceIds, Task, upid};

use super::address::{Address, KernelPointer};
use super::cgroup_filter;
use super::globals::{all_namespaces, offset, pid_ns_inum, pid_ns_level};
use super::log::log_line;

/// Maximum nesting of PID namespaces (`MAX_PID_NS_LEVEL` in `include/linux/pid_namespace.h`).
const LEVELS: u32 = 32;

/// Level and address of our PID namespace, learned from the first of our tasks. Both are stable, because we keep the
/// namespace alive.
static NAMESPACE: NamespaceCache = NamespaceCache { level_plus_1: UnsafeCell::new(0), namespace: UnsafeCell::new(0) };

/// Integers that CPUs read and write atomically; 0 while unknown. BPF before ISA v4 has no atomic load instruction, and
/// aligned loads need none.
struct NamespaceCache {
    level_plus_1: UnsafeCell<u32>,
    namespace: UnsafeCell<u64>,
}

// SAFETY: only volatile accesses of aligned words, and all writers write the same values.
unsafe impl Sync for NamespaceCache {}

impl NamespaceCache {
    #[inline(always)]
    fn level(&self) -> Option<u32> {
        // SAFETY: see `Sync`.
        unsafe { self.level_plus_1.get().read_volatile() }.checked_sub(1)
    }

    #[inline(always)]
    fn namespace(&self) -> Option<u64> {
        // SAFETY: see `Sync`.
        Some(unsafe { self.namespace.get().read_volatile() }).filter(|&namespace| namespace != 0)
    }

    /// A CPU that sees only one of the two stores takes the slow path.
    #[inline(always)]
    fn set(&self, level: u32, namespace: u64) {
        // SAFETY: see `Sync`.
        unsafe {
            self.level_plus_1.get().write_volatile(level + 1);
            self.namespace.get().write_volatile(namespace);
        }
    }
}

/// The address of the running task.
#[inline(always)]
pub(super) fn current() -> Address {
    // SAFETY: a helper without arguments.
    Address::new(unsafe { bpf_get_current_task() })
}

/// The thread group leader. It remains as a zombie until the last thread has exited.
#[inline(always)]
pub(super) fn leader<P: KernelPointer>(task: P) -> Option<P> {
    task.pointer(offset!(task_group_leader))
}

/// The ids and the start time of a task; `None` if it is not ours.
#[inline(always)]
pub(super) fn describe<P: KernelPointer>(task: P) -> Option<Task> {
    if !cgroup_filter::matches(task) {
        return None;
    }
    let leader = leader(task)?;
    let tgid = id(leader)?;
    let tid = if leader.address() == task.address() { tgid } else { id_at_known_level(task)? };
    Some(Task { tgid, tid, start_boot_ns: start(leader)? })
}

/// Start time of a thread group leader, in nanoseconds since boot.
#[inline(always)]
pub(super) fn start<P: KernelPointer>(leader: P) -> Option<u64> {
    leader.u64(offset!(task_start_boottime))
}

/// The process id and the command name of a task; 0 and an empty name if it is not ours. Call it only after
/// [`describe`] returned `Some` for another task.
#[inline(always)]
pub(super) fn name<P: KernelPointer>(task: P) -> (u32, [u8; COMM_BYTES]) {
    let found = leader(task).and_then(|leader| Some((id_at_known_level(leader)?, comm(leader))));
    // The filter comes last: another tenant's name may be read here, but it does not leave the kernel.
    found.filter(|_| cgroup_filter::matches(task)).unwrap_or((0, [0; COMM_BYTES]))
}

/// The command name of a task. Call it only for tasks that are ours.
#[inline(always)]
pub(super) fn comm<P: KernelPointer>(task: P) -> [u8; COMM_BYTES] {
    task.comm(offset!(task_comm)).unwrap_or_default()
}

/// The command name of a task as two words. Only for a comparison: it may be the name of another tenant's.
#[inline(always)]
pub(super) fn comm_words(task: Address) -> Option<[u64; 2]> {
    task.two_u64(offset!(task_comm))
}

/// Real user id in the initial user namespace (`task_uid()`).
#[inline(always)]
pub(super) fn uid(task: Address) -> u32 {
    task.pointer(offset!(task_real_cred)).and_then(|cred| cred.u32(offset!(cred_uid))).unwrap_or(0)
}

#[inline(always)]
pub(super) fn oom_score_adj(task: Address) -> i16 {
    task.pointer(offset!(task_signal)).and_then(|signal| signal.i16(offset!(signal_oom_score_adj))).unwrap_or(0)
}

/// Whether a task is in no other PID namespace than the initial one.
#[cfg(feature = "namespaces")]
#[inline(always)]
pub(super) fn is_in_initial_namespace(task: Address) -> bool {
    task.pointer(offset!(task_thread_pid)).and_then(|pid| pid.u32(offset!(pid_level))) == Some(0)
}

/// The ids of a task's process below the initial PID namespace, if all namespaces are traced.
#[inline(always)]
pub(super) fn namespaces(task: Address) -> NamespaceIds {
    if cfg!(not(feature = "namespaces")) || !all_namespaces() {
        return NamespaceIds::NONE;
    }
    let leader = Address::new(task.u64_or_0(offset!(task_group_leader)));
    let pid = Address::new(leader.u64_or_0(offset!(task_thread_pid)));
    NamespaceIds {
        deepest: pid.u32_or_0(offset!(pid_level)),
        reserved: 0,
        first: namespace_id(pid, 1),
        second: namespace_id(pid, 2),
        third: namespace_id(pid, 3),
        fourth: namespace_id(pid, 4),
    }
}

/// The entry of a level, or what lies behind the entries if the level is too deep.
#[inline(always)]
fn namespace_id(pid: Address, level: u32) -> NamespaceId {
    let entry = pid.plus(offset!(pid_numbers) + level * upid::SIZE);
    let namespace = Address::new(entry.u64_or_0(upid::NS));
    NamespaceId { inum: namespace.u32_or_0(offset!(pid_namespace_inum)), pid: entry.u32_or_0(upid::NR) }
}

/// Memory usage of a task, all 0 if it has released its memory.
#[inline(always)]
pub(super) fn memory(task: Address) -> Memory {
    let Some(mm) = task.pointer(offset!(task_mm)) else { return NO_MEMORY };
    Memory {
        total_vm_pages: mm.u64(offset!(mm_total_vm)).unwrap_or(0),
        file_pages: resident(mm, 0),
        anon_pages: resident(mm, 1),
        swap_pages: resident(mm, 2),
        shmem_pages: resident(mm, 3),
        pgtables_bytes: mm.u64(offset!(mm_pgtables_bytes)).unwrap_or(0),
    }
}

/// Address of a task's `mm_struct`, as an opaque id.
#[inline(always)]
pub(super) fn memory_map(task: Address) -> u64 {
    task.u64(offset!(task_mm)).unwrap_or(0)
}

const NO_MEMORY: Memory =
    Memory { total_vm_pages: 0, anon_pages: 0, file_pages: 0, shmem_pages: 0, swap_pages: 0, pgtables_bytes: 0 };

/// One of `MM_FILEPAGES`, `MM_ANONPAGES`, `MM_SWAPENTS`, `MM_SHMEMPAGES`, in this order since 4.5
/// (`include/linux/mm_types_task.h`). A central sum may be temporarily negative.
#[inline(always)]
fn resident(mm: Address, counter: u32) -> u64 {
    let first = offset!(mm_rss);
    let pages = mm.plus(counter * offset!(mm_rss_stride)).u64(first).unwrap_or(0);
    if pages >> 63 == 0 { pages } else { 0 }
}

/// The id of a task in our PID namespace; `None` if it is not in it. Does not apply the cgroup filter.
#[inline(always)]
pub(super) fn id<P: KernelPointer>(task: P) -> Option<u32> {
    if is_unfiltered() {
        return task.u32(offset!(task_pid));
    }
    id_of(task.pointer(offset!(task_thread_pid))?)
}

/// Like [`id`], but only valid after [`id`] returned `Some` for another task. The level of our namespace is then known,
/// which saves the verifier another search loop.
#[inline(always)]
pub(super) fn id_at_known_level<P: KernelPointer>(task: P) -> Option<u32> {
    if is_unfiltered() {
        return task.u32(offset!(task_pid));
    }
    id_or(task.pointer(offset!(task_thread_pid))?, |_, _| None)
}

/// The id of a `struct pid` in our PID namespace.
#[inline(always)]
pub(super) fn id_of<P: KernelPointer>(pid: P) -> Option<u32> {
    id_or(pid, search)
}

/// Like [`id_of`], for a child of one of our tasks. It is in its parent's namespace or below (`pidns_install` in
/// `kernel/pid_namespace.c`), so its level need not be checked.
#[inline(always)]
pub(super) fn id_of_child(pid: Address) -> Option<u32> {
    id_at(pid, our_level()?)
}

#[inline(always)]
fn id_or<P: KernelPointer>(pid: P, level_unknown: impl FnOnce(Address, u32) -> Option<u32>) -> Option<u32> {
    let deepest = pid.u32(offset!(pid_level))?;
    match our_level() {
        Some(level) if level <= deepest => id_at(pid.address(), level),
        Some(_) => None,
        None => level_unknown(pid.address(), deepest),
    }
}

/// Whether the PID namespace filter is off and ids of the initial PID namespace are reported.
#[inline(always)]
pub(super) fn is_unfiltered() -> bool {
    all_namespaces() || pid_ns_level() == 0
}

#[inline(always)]
fn our_level() -> Option<u32> {
    match pid_ns_level() {
        LEVEL_UNKNOWN => NAMESPACE.level(),
        level => Some(level),
    }
}

/// The id at this level, which must not be deeper than the task's own, if the namespace there is ours.
#[inline(always)]
fn id_at(pid: Address, level: u32) -> Option<u32> {
    let entry = pid.plus(level * upid::SIZE).two_u64(offset!(pid_numbers))?;
    let namespace = entry[(upid::NS / 8) as usize];
    let ours = match NAMESPACE.namespace() {
        Some(cached) => namespace == cached,
        None if Address::new(namespace).u32(offset!(pid_namespace_inum))? == pid_ns_inum() => {
            NAMESPACE.set(level, namespace);
            true
        }
        None => false,
    };
    // `nr` is the low half of its word: the object is built for little-endian machines.
    ours.then_some(entry[(upid::NR / 8) as usize] as u32)
}

/// Searches all levels for our namespace.
#[inline(always)]
fn search(pid: Address, deepest: u32) -> Option<u32> {
    for level in 0..=LEVELS {
        if level > deepest {
            break;
        }
        if let Some(id) = id_at(pid, level) {
            return Some(id);
        }
    }
    log_line!(namespace_level_unknown(deepest));
    None
}
