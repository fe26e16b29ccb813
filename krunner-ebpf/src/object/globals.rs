//! The globals that the loader overrides before the load. They are read-only and frozen by then, so
//! the verifier takes them for constants and drops the branches that do not apply.

use krunner_common::{Config, LEVEL_UNKNOWN, Offsets, config_flag};

#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets::UNKNOWN;

#[unsafe(no_mangle)]
static CONFIG: Config =
    Config { fence_cgroup_id: 0, pid_ns_inum: 0, pid_ns_level: LEVEL_UNKNOWN, flags: 0, reserved: 0 };

/// An offset of the running kernel by its name in [`Offsets`].
macro_rules! offset {
    ($name:ident) => {
        crate::object::globals::read(|offsets| &raw const offsets.$name)
    };
}

pub(super) use offset;

#[inline(always)]
pub(super) fn read(member: impl FnOnce(&'static Offsets) -> *const u32) -> u32 {
    // SAFETY: the pointer is to a member of a static. Volatile, because the loader changes what the
    // compiler takes for a constant.
    unsafe { member(&OFFSETS).read_volatile() }
}

/// Inode number of our pid namespace.
#[inline(always)]
pub(super) fn pid_ns_inum() -> u32 {
    // SAFETY: as in `read`.
    unsafe { (&raw const CONFIG.pid_ns_inum).read_volatile() }
}

/// Level of our pid namespace, or `LEVEL_UNKNOWN`.
#[inline(always)]
pub(super) fn pid_ns_level() -> u32 {
    // SAFETY: as in `read`.
    unsafe { (&raw const CONFIG.pid_ns_level).read_volatile() }
}

/// The memory cgroup that ours are in or below; 0 when there is no fence.
#[inline(always)]
pub(super) fn fence_cgroup_id() -> u64 {
    // SAFETY: as in `read`.
    unsafe { (&raw const CONFIG.fence_cgroup_id).read_volatile() }
}

/// Whether the running task can be read without calls.
#[inline(always)]
pub(super) fn direct_reads() -> bool {
    flags() & config_flag::DIRECT_READS != 0
}

/// Whether processes of all namespaces are reported.
#[inline(always)]
pub(super) fn all_namespaces() -> bool {
    flags() & config_flag::ALL_NAMESPACES != 0
}

/// Whether `mark_victim` gives a thread id of the init namespace and not a task.
#[inline(always)]
pub(super) fn mark_victim_is_pid() -> bool {
    flags() & config_flag::MARK_VICTIM_IS_PID != 0
}

#[inline(always)]
fn flags() -> u32 {
    // SAFETY: as in `read`.
    unsafe { (&raw const CONFIG.flags).read_volatile() }
}
