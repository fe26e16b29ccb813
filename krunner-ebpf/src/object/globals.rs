//! The globals that the loader overrides. They are read-only and frozen when the programs are loaded, so the verifier
//! treats them as constants and removes dead branches.

use krunner_common::{Config, LEVEL_UNKNOWN, Offsets, config_flag};

#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets::UNKNOWN;

#[unsafe(no_mangle)]
static CONFIG: Config =
    Config { filter_cgroup_id: 0, pid_ns_inum: 0, pid_ns_level: LEVEL_UNKNOWN, flags: 0, reserved: 0 };

/// Reads the member of [`Offsets`] with this name.
macro_rules! offset {
    ($name:ident) => {
        crate::object::globals::read(|offsets| &raw const offsets.$name)
    };
}

pub(super) use offset;

#[inline(always)]
pub(super) fn read(member: impl FnOnce(&'static Offsets) -> *const u32) -> u32 {
    // SAFETY: the pointer is to a member of a static. Volatile, because the loader overrides a value that the compiler
    // would otherwise treat as a constant.
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

/// Id of the memory cgroup that tasks must be in or below; 0 disables the filter.
#[inline(always)]
pub(super) fn filter_cgroup_id() -> u64 {
    // SAFETY: as in `read`.
    unsafe { (&raw const CONFIG.filter_cgroup_id).read_volatile() }
}

/// Whether the running task can be read with plain loads instead of helper calls.
#[inline(always)]
pub(super) fn direct_reads() -> bool {
    flags() & config_flag::DIRECT_READS != 0
}

/// Whether processes of all namespaces are reported.
#[inline(always)]
pub(super) fn all_namespaces() -> bool {
    flags() & config_flag::ALL_NAMESPACES != 0
}

/// Whether `mark_victim` passes a thread id of the initial PID namespace instead of a task.
#[inline(always)]
pub(super) fn mark_victim_is_pid() -> bool {
    flags() & config_flag::MARK_VICTIM_IS_PID != 0
}

#[inline(always)]
fn flags() -> u32 {
    // SAFETY: as in `read`.
    unsafe { (&raw const CONFIG.flags).read_volatile() }
}
