//! Filters tasks by memory cgroup. Used in the initial PID namespace, where the namespace does not separate our
//! processes from those of other tenants.
//!
//! A task has one `css_set` with a state (`css`) for each controller. An exiting task still has it: the exit tracepoint
//! fires before `cgroup_exit()`, which does not clear the pointer either (`kernel/exit.c`, `kernel/cgroup/cgroup.c`).
//! Cgroup ids are never reused.

use super::address::KernelPointer;
use super::cgroup;
use super::globals::{filter_cgroup_id, offset};

/// Maximum depth of a task below the filter's cgroup. systemd and nested container runtimes use about ten levels;
/// deeper tasks are treated as outside.
const LEVELS: u32 = 32;

/// Whether the task is in the filter's cgroup or below it, or the filter is disabled.
#[inline(always)]
pub(super) fn matches<P: KernelPointer>(task: P) -> bool {
    let filter = filter_cgroup_id();
    filter == 0 || is_below(task, filter).is_some()
}

/// Whether the running task or the child it has just forked matches. With `CLONE_INTO_CGROUP` only one of them may.
/// Recording the fork in both cases is safe: the child still has its parent's name, and from now on either was or is
/// one of ours.
#[inline(always)]
pub(super) fn matches_either<P: KernelPointer, C: KernelPointer>(current: P, child: C) -> bool {
    let filter = filter_cgroup_id();
    filter == 0
        || is_below(current, filter).is_some()
        || (has_other_cgroups(current, child) && is_below(child, filter).is_some())
}

/// Whether a new task is in other cgroups than its parent. Comparing the `css_set` pointers rules this out for nearly
/// all forks.
#[inline(always)]
fn has_other_cgroups<P: KernelPointer, C: KernelPointer>(current: P, child: C) -> bool {
    child.u64(offset!(task_cgroups)) != current.u64(offset!(task_cgroups))
}

#[inline(always)]
fn is_below<P: KernelPointer>(task: P, filter: u64) -> Option<()> {
    let mut css = cgroup::state_of(task)?;
    for _ in 0..LEVELS {
        if cgroup::id(css.pointer(offset!(css_cgroup))?)? == filter {
            return Some(());
        }
        css = css.pointer(offset!(css_parent))?;
    }
    None
}
