//! Tells which counted kills belong to a group kill (`memory.oom.group`), where small processes die with the large one.
//!
//! The kernel counts the group once and then kills, counts and logs its members one by one (`oom_kill_process`, `mm/oom_kill.c`). A
//! serial console is slow, so the counters may be read in between: the rest of the members comes in a count without a group.

use super::{Kills, MS};

/// How long the kernel may take to kill a group.
const SPREAD_NS: u64 = 1_000 * MS;

/// The last count that included a group kill.
#[derive(Debug, Default)]
pub(super) struct GroupKills {
    last: Option<(Option<String>, u64)>,
}

impl GroupKills {
    /// Whether a group was killed, now or shortly before in the same cgroup.
    pub(super) fn includes(&mut self, kills: &Kills, now_ns: u64) -> bool {
        let cgroup = kills.facts.cgroup.as_ref().map(|cgroup| cgroup.path.clone());
        if kills.is_group {
            self.last = Some((cgroup, now_ns));
            return true;
        }
        let is_same =
            |(last, at_ns): &(Option<String>, u64)| *last == cgroup && now_ns.saturating_sub(*at_ns) <= SPREAD_NS;
        self.last.as_ref().is_some_and(is_same)
    }
}
