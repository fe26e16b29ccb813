//! Scheduling of scans and ticks: frequent enough to see new and growing processes, within a CPU budget. Pure.
//!
//! While `krunner node` delivers the kills, ticks only prepare for its end: they are rare until memory is nearly full, because a
//! machine has hundreds of such sessions.

use std::time::Duration;

/// Periodic scans may use 1 / this of one CPU: 0.25 %.
const SCAN_SHARE: u32 = 400;

/// Maximum delay of the next scan after an expensive one.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// While memory runs out, scans may use 1 / this of one CPU, and ticks 1 / [`TICK_SHARE`].
pub(in crate::monitor) const RUNNING_OUT_SHARE: u32 = 50;
const TICK_SHARE: u32 = 30;

/// CPU time that ticks can save up for a burst. At the cgroup's limit a tick may have to reclaim memory itself (direct
/// reclaim), which takes hundreds of times as long as usual, and ticks matter most at that moment: a hundred kills in four
/// seconds took 400 ms on a machine whose system calls were slow, and one in seven was not attributed with 50 ms. Thirteen group
/// kills in four seconds took more than 500 ms on an emulated arm64, and the last ones were not seen.
const SAVED: Duration = Duration::from_secs(1);

/// Minimum time between ticks. A tick takes about 30 us of CPU time.
const SHORTEST_TICK: Duration = Duration::from_millis(5);

/// Time between ticks if the headroom is unknown.
const TICK_WITHOUT_LIMIT: Duration = Duration::from_millis(20);

/// Maximum time between ticks. An OOM kill is to be reported within 500 ms.
pub(in crate::monitor) const LONGEST_TICK: Duration = Duration::from_millis(250);

/// The same in stand-by.
const LONGEST_STAND_BY_TICK: Duration = Duration::from_secs(2);

/// Upper bound on how fast memory can be filled: a core touches about 4 GiB of new pages per second, and there are
/// several.
const FILLED_BYTES_PER_MS: u64 = 16 << 20;

/// What ticks are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::monitor) enum TickMode {
    /// Kills are inferred from what ticks see.
    Infer,
    /// `krunner node` delivers kills. After its end, they are inferred.
    StandBy,
}

impl TickMode {
    /// Time until the next tick with this headroom.
    #[must_use]
    pub(in crate::monitor) fn tick_interval(self, headroom_bytes: Option<u64>) -> Duration {
        let (without_limit, filled_bytes_per_ms, longest) = match self {
            Self::Infer => (TICK_WITHOUT_LIMIT, FILLED_BYTES_PER_MS, LONGEST_TICK),
            // A single process touches 1 GiB of new pages per second.
            Self::StandBy => (LONGEST_TICK, 1 << 20, LONGEST_STAND_BY_TICK),
        };
        let until_full = |bytes: u64| Duration::from_millis(bytes / filled_bytes_per_ms).clamp(SHORTEST_TICK, longest);
        headroom_bytes.map_or(without_limit, until_full)
    }

    /// How often to re-read limits and look for new cgroups, both of which rarely change.
    #[must_use]
    pub(in crate::monitor) fn refresh_interval(self) -> Duration {
        match self {
            Self::Infer => LONGEST_TICK,
            Self::StandBy => Duration::from_secs(10),
        }
    }
}

/// Time until the next scan after one that used `cpu`.
#[must_use]
pub(in crate::monitor) fn scan_pause(interval: Duration, cpu: Duration) -> Duration {
    interval.max((cpu * SCAN_SHARE).min(LONGEST_PAUSE))
}

/// CPU budget of ticks: a share of the elapsed time, which accumulates up to [`SAVED`].
#[derive(Debug)]
pub(in crate::monitor) struct CpuBudget {
    saved: Duration,
    owed: Duration,
}

impl CpuBudget {
    /// A budget with the maximum savings.
    #[must_use]
    pub(in crate::monitor) fn full() -> Self {
        Self { saved: SAVED, owed: Duration::ZERO }
    }

    /// Accounts for elapsed time and for the CPU time of a tick. Returns how long to delay the next tick.
    pub(in crate::monitor) fn spend(&mut self, cost: Duration, passed: Duration) -> Duration {
        let earned = self.saved + passed / TICK_SHARE;
        let owed = self.owed + cost;
        self.saved = earned.saturating_sub(owed).min(SAVED);
        self.owed = owed.saturating_sub(earned);
        self.owed * TICK_SHARE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn expensive_scans_are_rarer() {
        let interval = 2000 * MS;
        let pause_ms = |cpu_ms| scan_pause(interval, cpu_ms * MS).as_millis();
        assert_eq!([0, 1, 5, 10, 1000].map(pause_ms), [2000, 2000, 2000, 4000, 30_000]);
        let hour = Duration::from_hours(1);
        assert_eq!(scan_pause(hour, 1000 * MS), hour);
    }

    #[test]
    fn tick_comes_before_the_headroom_can_be_filled() {
        let tick_ms = |mode: TickMode| {
            [0, 32, 160, 1600, 1 << 20].map(|mib: u64| mode.tick_interval(Some(mib << 20)).as_millis())
        };
        assert_eq!(tick_ms(TickMode::Infer), [5, 5, 10, 100, 250]);
        assert_eq!(tick_ms(TickMode::StandBy), [5, 32, 160, 1600, 2000]);
        assert_eq!(TickMode::Infer.tick_interval(Some(u64::MAX)), LONGEST_TICK);
        assert_eq!(TickMode::Infer.tick_interval(None), TICK_WITHOUT_LIMIT);
    }

    #[test]
    fn a_few_expensive_ticks_do_not_delay_the_next_ones() {
        let mut budget = CpuBudget::full();
        let affordable = SAVED.as_millis() / 8;
        for _ in 0..affordable {
            assert_eq!(budget.spend(8 * MS, 5 * MS), Duration::ZERO);
        }
        let put_off = (0..5).map(|_| budget.spend(8 * MS, 5 * MS)).last().unwrap();
        assert!(put_off > 200 * MS, "{put_off:?}");
        // After that time the debt is paid.
        assert_eq!(budget.spend(Duration::ZERO, put_off), Duration::ZERO);
    }

    #[test]
    fn ticks_use_their_share_in_the_long_run() {
        let mut budget = CpuBudget::full();
        let (cost, mut taken, mut passed) = (MS, Duration::ZERO, Duration::ZERO);
        let mut last = Duration::ZERO;
        for _ in 0..10_000 {
            last = budget.spend(cost, last).max(5 * MS);
            taken += cost;
            passed += last;
        }
        assert!(taken < passed / TICK_SHARE + SAVED + cost, "{taken:?} of {passed:?}");
        assert!(taken > passed / TICK_SHARE / 2, "{taken:?} of {passed:?}");
    }
}
