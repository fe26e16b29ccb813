//! Tasks: is it ours, under which ids, since when, how big.
//!
//! A task has an id in its own pid namespace and in every one above that (`struct pid`, `numbers[]`
//! by level). It is ours if the entry at our level belongs to our namespace; then that entry also has
//! the id by which our /proc knows it. For everything else the answer is `None`, and nothing about it
//! goes further than that.

use core::cell::UnsafeCell;

use aya_ebpf::helpers::bpf_get_current_task;
use krunner_common::{COMM_BYTES, LEVEL_UNKNOWN, Memory, Task, upid};

use super::address::Address;
use super::globals::{all_namespaces, fence_cgroup_id, memory_subsystem, offset, pid_ns_inum, pid_ns_level};

/// Pid namespaces nest this deep (`MAX_PID_NS_LEVEL` in `include/linux/pid_namespace.h`).
const LEVELS: u32 = 32;

/// What the first task of ours taught: at which level our namespace is, and where the kernel has it.
/// It stays there, since we are in it.
static LEARNT: Learnt = Learnt { level_plus_1: UnsafeCell::new(0), namespace: UnsafeCell::new(0) };

/// Words that all CPUs read and write as a whole; 0 while unknown. BPF before its fourth version has
/// no instruction for an atomic load, and needs none.
struct Learnt {
    level_plus_1: UnsafeCell<u32>,
    namespace: UnsafeCell<u64>,
}

// SAFETY: only volatile accesses of aligned words, and all writers write the same values.
unsafe impl Sync for Learnt {}

impl Learnt {
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

    /// A CPU that sees only one of them takes the longer way.
    #[inline(always)]
    fn set(&self, level: u32, namespace: u64) {
        // SAFETY: see `Sync`.
        unsafe {
            self.level_plus_1.get().write_volatile(level + 1);
            self.namespace.get().write_volatile(namespace);
        }
    }
}

/// The running task.
#[inline(always)]
pub(super) fn current() -> Address {
    // SAFETY: a helper without arguments.
    Address::new(unsafe { bpf_get_current_task() })
}

/// The first thread of a task's group. It stays, as a zombie, until the last one is gone.
#[inline(always)]
pub(super) fn leader(task: Address) -> Option<Address> {
    task.pointer(offset!(task_group_leader))
}

/// A task as we see it; `None` if it is not ours.
#[inline(always)]
pub(super) fn describe(task: Address) -> Option<Task> {
    let leader = leader(task)?;
    let tgid = id(leader)?;
    let tid = if leader == task { tgid } else { id_again(task)? };
    Some(Task { tgid, tid, start_boot_ns: start(leader)? })
}

/// When a leader started.
#[inline(always)]
pub(super) fn start(leader: Address) -> Option<u64> {
    leader.u64(offset!(task_start_boottime))
}

/// The id of a task's group and its name, for someone of whom we need no more; 0 and no name if it is
/// not ours. To be called after [`describe`] found another one that is.
#[inline(always)]
pub(super) fn name(task: Address) -> (u32, [u8; COMM_BYTES]) {
    let Some(leader) = leader(task) else { return (0, [0; COMM_BYTES]) };
    match id_again(leader) {
        Some(tgid) => (tgid, comm(leader)),
        None => (0, [0; COMM_BYTES]),
    }
}

/// The id of a task's group where we are, of one that is related to another that is ours. It may be outside
/// the fence itself: an id says nothing of it to whoever cannot see it. To be called after [`id`].
#[inline(always)]
pub(super) fn group_id(task: Address) -> Option<u32> {
    if everything_is_ours() {
        return task.u32(offset!(task_tgid));
    }
    id_where_we_are(leader(task)?, |_, _| None)
}

/// A task's name. To be called only for one that is ours.
#[inline(always)]
pub(super) fn comm(task: Address) -> [u8; COMM_BYTES] {
    task.comm(offset!(task_comm)).unwrap_or_default()
}

/// Real user id in the init user namespace (`task_uid()`).
#[inline(always)]
pub(super) fn uid(task: Address) -> u32 {
    task.pointer(offset!(task_real_cred)).and_then(|cred| cred.u32(offset!(cred_uid))).unwrap_or(0)
}

#[inline(always)]
pub(super) fn oom_score_adj(task: Address) -> i16 {
    task.pointer(offset!(task_signal)).and_then(|signal| signal.i16(offset!(signal_oom_score_adj))).unwrap_or(0)
}

/// How big a task is.
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

/// Which memory map a task has.
#[inline(always)]
pub(super) fn memory_map(task: Address) -> u64 {
    task.u64(offset!(task_mm)).unwrap_or(0)
}

const NO_MEMORY: Memory =
    Memory { total_vm_pages: 0, anon_pages: 0, file_pages: 0, shmem_pages: 0, swap_pages: 0, pgtables_bytes: 0 };

/// One of `MM_FILEPAGES`, `MM_ANONPAGES`, `MM_SWAPENTS`, `MM_SHMEMPAGES`, in this order since 4.5
/// (`include/linux/mm_types_task.h`). A central sum may be below 0 for a moment.
#[inline(always)]
fn resident(mm: Address, counter: u32) -> u64 {
    let first = offset!(mm_rss);
    let pages = mm.plus(counter * offset!(mm_rss_stride)).u64(first).unwrap_or(0);
    if pages >> 63 == 0 { pages } else { 0 }
}

/// The id of a task where we are; `None` if it is not ours.
#[inline(always)]
pub(super) fn id(task: Address) -> Option<u32> {
    id_or(task, search)
}

/// The same, to be called after [`id`] found another task that is ours. Our level is known then, and
/// the verifier need not follow one more search.
#[inline(always)]
pub(super) fn id_again(task: Address) -> Option<u32> {
    id_or(task, |_, _| None)
}

#[inline(always)]
fn id_or(task: Address, level_unknown: impl FnOnce(Address, u32) -> Option<u32>) -> Option<u32> {
    if fence_cgroup_id() != 0 && !is_inside(task) {
        return None;
    }
    id_where_we_are(task, level_unknown)
}

#[inline(always)]
fn id_where_we_are(task: Address, level_unknown: impl FnOnce(Address, u32) -> Option<u32>) -> Option<u32> {
    if everything_is_ours() {
        return task.u32(offset!(task_pid));
    }
    let pid = task.pointer(offset!(task_thread_pid))?;
    let deepest = pid.u32(offset!(pid_level))?;
    match our_level() {
        Some(level) if level <= deepest => id_at(pid, level),
        Some(_) => None,
        None => level_unknown(pid, deepest),
    }
}

/// Cgroups nest this deep under the one that we look for; a Kubernetes pod's are three deep.
const CGROUP_LEVELS: u32 = 16;

/// Whether a task's memory cgroup is the fence or below it.
#[inline(always)]
fn is_inside(task: Address) -> bool {
    cgroup_walk(task).unwrap_or(false)
}

#[inline(always)]
fn cgroup_walk(task: Address) -> Option<bool> {
    let cgroups = task.pointer(offset!(task_cgroups))?;
    let mut state = cgroups.plus(memory_subsystem() * 8).pointer(offset!(css_set_subsys))?;
    for _ in 0..CGROUP_LEVELS {
        let cgroup = state.pointer(offset!(css_cgroup))?;
        if cgroup.pointer(offset!(cgroup_kn))?.u64(offset!(kernfs_node_id))? == fence_cgroup_id() {
            return Some(true);
        }
        state = state.pointer(offset!(css_parent))?;
    }
    Some(false)
}

/// Whether the ids of the init namespace are the ones to report, and there is nothing to filter.
#[inline(always)]
fn everything_is_ours() -> bool {
    all_namespaces() || pid_ns_level() == 0
}

#[inline(always)]
fn our_level() -> Option<u32> {
    match pid_ns_level() {
        LEVEL_UNKNOWN => LEARNT.level(),
        level => Some(level),
    }
}

/// The id at a level at or above the deepest one, if the namespace there is ours.
#[inline(always)]
fn id_at(pid: Address, level: u32) -> Option<u32> {
    let entry = pid.plus(level * upid::SIZE).two_u64(offset!(pid_numbers))?;
    let namespace = entry[(upid::NS / 8) as usize];
    let ours = match LEARNT.namespace() {
        Some(learnt) => namespace == learnt,
        None if Address::new(namespace).u32(offset!(pid_namespace_inum))? == pid_ns_inum() => {
            LEARNT.set(level, namespace);
            true
        }
        None => false,
    };
    // The number is the low half of its word: the object is for little-endian machines.
    ours.then_some(entry[(upid::NR / 8) as usize] as u32)
}

/// Tries every level.
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
    None
}
