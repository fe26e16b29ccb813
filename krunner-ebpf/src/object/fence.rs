//! The fence for a runner in the init pid namespace, where the namespace tells nobody apart: ours are the
//! tasks in our memory cgroup and below it.
//!
//! A task has one `css_set`, with a state (`css`) for each controller. It keeps it while it dies: the
//! tracepoint of the exit comes before `cgroup_exit()`, which leaves the pointer in place too
//! (`kernel/exit.c`, `kernel/cgroup/cgroup.c`). Ids of cgroups are not used again.

use super::address::Place;
use super::cgroup;
use super::globals::{fence_cgroup_id, offset};

/// How far below the fence a task may be. Systemd and the container runtimes that nest go some ten
/// levels deep; whatever is deeper counts as outside.
const LEVELS: u32 = 32;

/// Whether a task is on our side, or there is no fence.
#[inline(always)]
pub(super) fn has<P: Place>(task: P) -> bool {
    let fence = fence_cgroup_id();
    fence == 0 || is_below(task, fence).is_some()
}

/// Whether the running task or one that it has just made is. The new one has the maker's name, so that
/// nobody else's is told when it goes elsewhere (`CLONE_INTO_CGROUP`); and if it comes from elsewhere, the
/// name is that of one of ours from now on.
#[inline(always)]
pub(super) fn has_either<P: Place, C: Place>(current: P, child: C) -> bool {
    let fence = fence_cgroup_id();
    fence == 0 || is_below(current, fence).is_some() || is_below(child, fence).is_some()
}

#[inline(always)]
fn is_below<P: Place>(task: P, fence: u64) -> Option<()> {
    let mut css = cgroup::state_of(task)?;
    for _ in 0..LEVELS {
        if cgroup::id(css.pointer(offset!(css_cgroup))?)? == fence {
            return Some(());
        }
        css = css.pointer(offset!(css_parent))?;
    }
    None
}
