//! Cgroups by their ids: the one that a task's memory is charged to, and one that was just made.
//!
//! A task has a `css_set`, and in it a state (`css`) for each controller: for the memory controller that of the cgroup
//! which is charged, in either version. In the second it is one above the task's own where the controller is off. Another
//! hierarchy uses the same ids for other cgroups, hence [`is_charged_hierarchy`].

use krunner_common::ABSENT;

use super::address::{Address, Place};
use super::globals::offset;

/// The state that the memory controller has for a task.
#[inline(always)]
pub(super) fn state_of<P: Place>(task: P) -> Option<P> {
    task.pointer(offset!(task_cgroups))?.pointer(offset!(css_set_memory))
}

/// The id of the cgroup that a task's memory is charged to.
#[inline(always)]
pub(super) fn id_of<P: Place>(task: P) -> Option<u64> {
    id(state_of(task)?.pointer(offset!(css_cgroup))?)
}

/// The id of a cgroup.
#[inline(always)]
pub(super) fn id<P: Place>(cgroup: P) -> Option<u64> {
    cgroup.pointer(offset!(cgroup_kn))?.u64(offset!(kernfs_node_id))
}

/// The id of the cgroup that this one is in; `None` for the top of a hierarchy.
#[inline(always)]
pub(super) fn parent_id(cgroup: Address) -> Option<u64> {
    let own = offset!(cgroup_self);
    if own == ABSENT {
        return None;
    }
    id(cgroup.plus(own).pointer(offset!(css_parent))?.pointer(offset!(css_cgroup))?)
}

/// Whether a cgroup is in the hierarchy in which the memory of this task is charged.
#[inline(always)]
pub(super) fn is_charged_hierarchy(cgroup: Address, task: Address) -> Option<bool> {
    let charged = state_of(task)?.pointer(offset!(css_cgroup))?.pointer(offset!(cgroup_root))?;
    Some(cgroup.pointer(offset!(cgroup_root))? == charged)
}
