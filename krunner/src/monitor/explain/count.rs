//! OOM kills as a counter has them: their number and the memory at that moment.

use super::MemoryFacts;
use crate::monitor::model::cgroup::CgroupFacts;

/// OOM kills counted since the last [`KillCounter::take`](crate::monitor::sources::cgroup::counter::KillCounter::take).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::monitor) struct Count {
    /// The counts by cgroup.
    pub(in crate::monitor) kills: Vec<Kills>,
    /// Whether a counter is readable.
    pub(in crate::monitor) is_counted: bool,
    /// Start of the interval, in nanoseconds since boot.
    pub(in crate::monitor) since_boot_ns: u64,
    /// End of the interval: when the counters were last read.
    pub(in crate::monitor) at_boot_ns: u64,
}

/// OOM kills counted by one cgroup's counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::monitor) struct Kills {
    /// The number of kills.
    pub(in crate::monitor) number: u64,
    pub(in crate::monitor) group: GroupKill,
    /// The cgroup, the limit that was hit, and the memory usage.
    pub(in crate::monitor) facts: MemoryFacts,
}

/// Whether processes were killed as members of the victim's cgroup (`memory.oom.group`, cgroup-v2.rst). The kernel counts the chosen
/// process, the group, then each member (`oom_kill_process`, `mm/oom_kill.c`), and counters may be read in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::monitor) enum GroupKill {
    No,
    /// Several kills, or one soon after others, where the kernel does not count groups.
    Possible,
    /// A group was counted, and no member yet.
    Begun,
    /// A group was counted, and members are among the kills.
    Members,
}

impl Kills {
    pub(in crate::monitor) fn new(number: u64, group: GroupKill, cgroup: Option<CgroupFacts>) -> Self {
        Self { number, group, facts: MemoryFacts { cgroup, ..MemoryFacts::default() } }
    }
}
