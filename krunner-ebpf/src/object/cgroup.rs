//! Cgroup ids: of the cgroup that a task's memory is charged to, and of a cgroup that was just created.
//!
//! A task's `css_set` has a state (`css`) for each controller. The memory controller's belongs to the cgroup that is
//! charged, in cgroup v1 and v2. In v2 this is an ancestor of the task's own cgroup if the controller is disabled
//! there. Ids are unique only within a hierarchy, hence [`is_charged_hierarchy`].

use krunner_common::ABSENT;

use super::address::{Address, KernelPointer};
use super::globals::offset;

/// The memory controller's `css` of a task, as the cgroup filter sees it.
#[inline(always)]
pub(super) fn state_of<P: KernelPointer>(task: P) -> Option<P> {
    task.pointer(offset!(task_cgroups))?.pointer(offset!(css_set_memory))
}

/// The memory controller's `css` of a task, for finding limits.
#[inline(always)]
pub(super) fn charged_state_of(task: Address) -> Option<Address> {
    task.pointer(offset!(task_cgroups))?.pointer(offset!(css_set_charged))
}

/// The id of the cgroup that a task's memory is charged to.
#[inline(always)]
pub(super) fn id_of<P: KernelPointer>(task: P) -> Option<u64> {
    id(state_of(task)?.pointer(offset!(css_cgroup))?)
}

/// The kernel's id of a cgroup (`kernfs_node.id`).
#[inline(always)]
pub(super) fn id<P: KernelPointer>(cgroup: P) -> Option<u64> {
    cgroup.pointer(offset!(cgroup_kn))?.u64(offset!(kernfs_node_id))
}

/// The id of the parent cgroup; `None` for the root of a hierarchy.
#[inline(always)]
pub(super) fn parent_id(cgroup: Address) -> Option<u64> {
    let own = offset!(cgroup_self);
    if own == ABSENT {
        return None;
    }
    id(cgroup.plus(own).pointer(offset!(css_parent))?.pointer(offset!(css_cgroup))?)
}

/// Whether a cgroup is in the hierarchy that this task's memory is charged in.
#[inline(always)]
pub(super) fn is_charged_hierarchy(cgroup: Address, task: Address) -> Option<bool> {
    let charged = state_of(task)?.pointer(offset!(css_cgroup))?.pointer(offset!(cgroup_root))?;
    Some(cgroup.pointer(offset!(cgroup_root))? == charged)
}
