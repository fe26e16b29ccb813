//! One counter of OOM kills, and which of its increases may be a group kill (`memory.oom.group`).
//!
//! In a group kill the kernel counts and logs one member after the other (`mem_cgroup_scan_tasks` in `oom_kill_process`,
//! `mm/oom_kill.c`), so that one group may be spread over several readings. `memory.events` has a count of groups since Linux 5.17;
//! `/proc/vmstat`, which is read in v2's root, has none. Without it, kills that may have followed one another within
//! [`MEMBERS_GAP`] are possibly one group.

use std::fs::File;
use std::time::{Duration, Instant};

use super::files::{text, value};
use crate::monitor::explain::GroupKill;

/// How long after its group the next member may be counted.
const MEMBERS_PATIENCE: Duration = Duration::from_secs(1);

/// The longest time between two members of a group that the kernel does not count as one: it logs each, and a serial console of
/// 115,200 baud takes 13 ms for the line.
const MEMBERS_GAP: Duration = Duration::from_millis(20);

/// A monotonic counter of OOM kills.
#[derive(Debug)]
pub(super) struct MonotonicCount {
    pub(super) file: File,
    last: Option<u64>,
    /// v2, which can kill all members of a cgroup at once.
    may_be_group: bool,
    /// `oom_group_kill`: the number of group kills.
    last_groups: Option<u64>,
    /// A group was counted after its first member, and no other member yet.
    group_begun: Option<Instant>,
    /// The last reading: a later increase happened after it.
    last_reading: Option<Instant>,
    /// The last reading that found an increase, which happened before it.
    last_increase: Option<Instant>,
}

impl MonotonicCount {
    pub(super) fn new(file: File, may_be_group: bool) -> Self {
        Self {
            file,
            last: None,
            may_be_group,
            last_groups: None,
            group_begun: None,
            last_reading: None,
            last_increase: None,
        }
    }

    /// Counts everything at the next reading, as for a cgroup that was created since the last one.
    pub(super) fn start_from_0(&mut self) {
        self.last = Some(0);
    }

    /// The count at the last reading; `None` if the counter is not readable.
    pub(super) fn last(&self) -> Option<u64> {
        self.last
    }

    /// The increase since the last call, and whether it includes a group kill; `None` without one, and at the first call.
    pub(super) fn increase(&mut self, buffer: &mut [u8]) -> Option<(u64, GroupKill)> {
        let text = text(&self.file, buffer).ok()?;
        self.increase_to(value(text, "oom_kill")?, value(text, "oom_group_kill"), Instant::now())
    }

    fn increase_to(&mut self, kills: u64, groups: Option<u64>, now: Instant) -> Option<(u64, GroupKill)> {
        let groups_before = std::mem::replace(&mut self.last_groups, groups).unwrap_or(0);
        let last_reading = self.last_reading.replace(now);
        let before = self.last.replace(kills)?;
        let increase = kills.saturating_sub(before);
        let is_begun = groups.is_some_and(|groups| groups > groups_before);
        if increase == 0 {
            if is_begun {
                self.group_begun = Some(now);
            }
            return None;
        }
        let was_begun = self.group_begun.take().is_some_and(|at| now.duration_since(at) < MEMBERS_PATIENCE);
        let follows = self
            .last_increase
            .replace(now)
            .zip(last_reading)
            .is_some_and(|(increase, reading)| reading.duration_since(increase) <= MEMBERS_GAP);
        let group = match increase {
            _ if !self.may_be_group => GroupKill::No,
            _ if groups.is_none() && (increase > 1 || follows) => GroupKill::Possible,
            1 if is_begun => GroupKill::Begun,
            _ if is_begun || was_begun => GroupKill::Members,
            _ => GroupKill::No,
        };
        Some((increase, group))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each reading found: after milliseconds, the numbers of kills and of groups.
    fn readings(may_be_group: bool, readings: &[(u64, u64, Option<u64>)]) -> Vec<Option<(u64, GroupKill)>> {
        let file = File::open("/dev/null").unwrap();
        let (mut count, start) = (MonotonicCount::new(file, may_be_group), Instant::now());
        let groups = readings[0].2.map(|_| 8);
        assert_eq!(count.increase_to(3, groups, start), None, "the first reading");
        let read = |(at_ms, kills, groups): &(u64, u64, Option<u64>)| {
            count.increase_to(*kills, *groups, start + Duration::from_millis(*at_ms))
        };
        readings.iter().map(read).collect()
    }

    #[test]
    fn members_that_are_read_one_by_one_may_be_a_group() {
        let read =
            |may_be_group| readings(may_be_group, &[(100, 5, None), (110, 6, None), (120, 6, None), (125, 7, None)]);
        let possible = GroupKill::Possible;
        assert_eq!(read(true), [Some((2, possible)), Some((1, possible)), None, Some((1, possible))]);
        assert_eq!(read(false)[0], Some((2, GroupKill::No)), "v1 has no groups");
        assert_eq!(read(false)[1], Some((1, GroupKill::No)));
    }

    #[test]
    fn the_gap_is_the_least_that_the_readings_allow() {
        // The second increase may have followed the first at once, however late it was read.
        let late = readings(true, &[(100, 4, None), (400, 5, None)]);
        assert_eq!(late, [Some((1, GroupKill::No)), Some((1, GroupKill::Possible))]);
        let apart = readings(true, &[(100, 4, None), (130, 4, None), (140, 5, None)]);
        assert_eq!(apart[2], Some((1, GroupKill::No)), "they were at least 30 ms apart");
    }

    #[test]
    fn kills_beside_a_count_of_groups_are_no_group_unless_it_rises() {
        let one_by_one = readings(true, &[(100, 4, Some(8)), (101, 5, Some(8)), (102, 7, Some(8))]);
        let no = GroupKill::No;
        assert_eq!(one_by_one, [Some((1, no)), Some((1, no)), Some((2, no))]);
        let begun = readings(true, &[(100, 4, Some(9)), (101, 6, Some(9))]);
        assert_eq!(begun, [Some((1, GroupKill::Begun)), Some((2, no))], "the inference knows that the group goes on");
    }
}
