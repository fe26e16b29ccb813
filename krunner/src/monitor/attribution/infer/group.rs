//! Tells which counted kills belong to a group kill (`memory.oom.group`), where small processes die with the large one.
//!
//! The kernel counts the group once and then kills, counts and logs its members one by one (`oom_kill_process`, `mm/oom_kill.c`). A
//! serial console is slow, so the counters may be read in between: the rest of the members comes in a count without a group.

use super::{Kills, MS};
use crate::monitor::explain::GroupKill;

/// How long the kernel may take from one member to the next: 150 ms were seen on an emulated processor.
const SPREAD_NS: u64 = 1_000 * MS;

/// Cgroup and time of the last count of a group kill that the kernel counted as such.
#[derive(Debug, Default)]
pub(super) struct GroupKills {
    last: Option<(Option<String>, u64)>,
}

impl GroupKills {
    /// Whether these are members of a group, which was killed now or shortly before in the same cgroup.
    pub(super) fn includes(&mut self, kills: &Kills, now_ns: u64) -> bool {
        let cgroup = kills.facts.cgroup.as_ref().map(|cgroup| cgroup.path.clone());
        let is_same =
            |(last, at_ns): &(Option<String>, u64)| *last == cgroup && now_ns.saturating_sub(*at_ns) <= SPREAD_NS;
        let is_tail = self.last.as_ref().is_some_and(is_same);
        if is_tail || matches!(kills.group, GroupKill::Begun | GroupKill::Members) {
            self.last = Some((cgroup, now_ns));
        }
        is_tail || matches!(kills.group, GroupKill::Possible | GroupKill::Members)
    }
}
