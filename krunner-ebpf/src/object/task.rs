//! Tasks: is it ours, under which ids, since when, how big.
//!
//! A task has an id in its own pid namespace and in every one above that (`struct pid`, `numbers[]`
//! by level). It is ours if the entry at our level belongs to our namespace; then that entry also has
//! the id by which our /proc knows it. For everything else the answer is `None`, and nothing about it
//! goes further than that.

use core::cell::UnsafeCell;

use aya_ebpf::helpers::bpf_get_current_task;
use krunner_common::{COMM_BYTES, LEVEL_UNKNOWN, Memory, Task, upid};

use super::address::{Address, Place};
use super::fence;
use super::globals::{all_namespaces, offset, pid_ns_inum, pid_ns_level};
use super::log::log_line;

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

/// The running task, as an address.
#[inline(always)]
pub(super) fn current() -> Address {
    // SAFETY: a helper without arguments.
    Address::new(unsafe { bpf_get_current_task() })
}

/// The first thread of a task's group. It stays, as a zombie, until the last one is gone.
#[inline(always)]
pub(super) fn leader<P: Place>(task: P) -> Option<P> {
    task.pointer(offset!(task_group_leader))
}

/// A task as we see it; `None` if it is not ours.
#[inline(always)]
pub(super) fn describe<P: Place>(task: P) -> Option<Task> {
    if !fence::has(task) {
        return None;
    }
    let leader = leader(task)?;
    let tgid = id(leader)?;
    let tid = if leader.address() == task.address() { tgid } else { id_again(task)? };
    Some(Task { tgid, tid, start_boot_ns: start(leader)? })
}

/// When a leader started.
#[inline(always)]
pub(super) fn start<P: Place>(leader: P) -> Option<u64> {
    leader.u64(offset!(task_start_boottime))
}

/// The id of a task's group and its name, for someone of whom we need no more; 0 and no name if it is
/// not ours. To be called after [`describe`] found another one that is.
#[inline(always)]
pub(super) fn name<P: Place>(task: P) -> (u32, [u8; COMM_BYTES]) {
    let found = leader(task).and_then(|leader| Some((id_again(leader)?, comm(leader))));
    // The fence last: only here is somebody else's name read at all, and only the kernel sees it.
    found.filter(|_| fence::has(task)).unwrap_or((0, [0; COMM_BYTES]))
}

/// A task's name. To be called only for one that is ours.
#[inline(always)]
pub(super) fn comm<P: Place>(task: P) -> [u8; COMM_BYTES] {
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

/// The id of a task where we are; `None` if it is in no namespace of ours. The fence is another matter.
#[inline(always)]
pub(super) fn id<P: Place>(task: P) -> Option<u32> {
    if everything_is_ours() {
        return task.u32(offset!(task_pid));
    }
    id_of(task.pointer(offset!(task_thread_pid))?)
}

/// The same, to be called after [`id`] found another task that is ours. Our level is known then, and
/// the verifier need not follow one more search.
#[inline(always)]
pub(super) fn id_again<P: Place>(task: P) -> Option<u32> {
    if everything_is_ours() {
        return task.u32(offset!(task_pid));
    }
    id_or(task.pointer(offset!(task_thread_pid))?, |_, _| None)
}

/// The id that a `struct pid` stands for where we are.
#[inline(always)]
pub(super) fn id_of<P: Place>(pid: P) -> Option<u32> {
    id_or(pid, search)
}

/// The same for a task that one of ours has just made. It is in its maker's namespace or deeper
/// (`pidns_install` in `kernel/pid_namespace.c`), so that there is no need to ask how deep.
#[inline(always)]
pub(super) fn id_of_child(pid: Address) -> Option<u32> {
    id_at(pid, our_level()?)
}

#[inline(always)]
fn id_or<P: Place>(pid: P, level_unknown: impl FnOnce(Address, u32) -> Option<u32>) -> Option<u32> {
    let deepest = pid.u32(offset!(pid_level))?;
    match our_level() {
        Some(level) if level <= deepest => id_at(pid.address(), level),
        Some(_) => None,
        None => level_unknown(pid.address(), deepest),
    }
}

/// Whether the ids of the init namespace are the ones to report, and no namespace tells ours apart.
#[inline(always)]
pub(super) fn everything_is_ours() -> bool {
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
    log_line!(nothing_learnt(deepest));
    None
}
