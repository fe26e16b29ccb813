//! When to look again: often enough to see who comes and who grows, rarely enough to cost little. Pure.

use std::time::Duration;

/// The part of one processor that periodic scans may take is 1 / this: 0.25 %.
const SCAN_SHARE: u32 = 400;

/// An expensive scan does not put off the next one further than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// While memory runs out, scans may take 1 / this of one processor, and beats 1 / [`BEAT_SHARE`].
pub(super) const RUNNING_OUT_SHARE: u32 = 50;
const BEAT_SHARE: u32 = 30;

/// What beats may take at once when they have taken little for a second or two. At the limit of the cgroup a beat may
/// have to find memory for itself (direct reclaim), which takes hundreds of times as long as usual; and it is needed
/// just then.
const SAVED: Duration = Duration::from_millis(50);

/// A beat takes some 30 us of a processor here.
const SHORTEST_BEAT: Duration = Duration::from_millis(5);

/// Where nobody knows how much is left.
const BLIND_BEAT: Duration = Duration::from_millis(20);

/// A kill is to be told within 500 ms.
pub(super) const LONGEST_BEAT: Duration = Duration::from_millis(250);

/// How fast memory can be filled: a core touches some 4 GiB of new pages in a second, and there are several.
const FILLED_BYTES_PER_MS: u64 = 16 << 20;

/// Until the next beat, where so much may still be taken.
#[must_use]
pub(super) fn beat(headroom_bytes: Option<u64>) -> Duration {
    let until_full = |bytes: u64| Duration::from_millis(bytes / FILLED_BYTES_PER_MS).clamp(SHORTEST_BEAT, LONGEST_BEAT);
    headroom_bytes.map_or(BLIND_BEAT, until_full)
}

/// How long to wait after a scan that took so much of a processor.
#[must_use]
pub(super) fn pause(interval: Duration, cpu: Duration) -> Duration {
    interval.max((cpu * SCAN_SHARE).min(LONGEST_PAUSE))
}

/// What beats may take of a processor: a share of the time that passes, which can be saved up to [`SAVED`].
#[derive(Debug)]
pub(super) struct Allowance {
    saved: Duration,
    owed: Duration,
}

impl Allowance {
    /// All that can be saved.
    #[must_use]
    pub(super) fn full() -> Self {
        Self { saved: SAVED, owed: Duration::ZERO }
    }

    /// Time has passed, and a beat has taken so much of a processor; how long the next one has to be put off.
    pub(super) fn spend(&mut self, cost: Duration, passed: Duration) -> Duration {
        let earned = self.saved + passed / BEAT_SHARE;
        let owed = self.owed + cost;
        self.saved = earned.saturating_sub(owed).min(SAVED);
        self.owed = owed.saturating_sub(earned);
        self.owed * BEAT_SHARE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn expensive_scans_are_rarer() {
        let interval = 2000 * MS;
        let pause_ms = |cpu_ms| pause(interval, cpu_ms * MS).as_millis();
        assert_eq!([0, 1, 5, 10, 1000].map(pause_ms), [2000, 2000, 2000, 4000, 30_000]);
        let hour = Duration::from_hours(1);
        assert_eq!(pause(hour, 1000 * MS), hour);
    }

    #[test]
    fn a_beat_comes_before_what_is_left_can_be_filled() {
        let beat_ms = |mib: u64| beat(Some(mib << 20)).as_millis();
        assert_eq!([0, 32, 160, 1600, 1 << 20].map(beat_ms), [5, 5, 10, 100, 250]);
        assert_eq!(beat(Some(u64::MAX)), LONGEST_BEAT);
        assert_eq!(beat(None), BLIND_BEAT);
    }

    #[test]
    fn a_few_expensive_beats_are_not_held_against_the_next_ones() {
        let mut allowance = Allowance::full();
        for _ in 0..5 {
            assert_eq!(allowance.spend(8 * MS, 5 * MS), Duration::ZERO);
        }
        let put_off = (0..5).map(|_| allowance.spend(8 * MS, 5 * MS)).last().unwrap();
        assert!(put_off > 200 * MS, "{put_off:?}");
        // Once that has passed, nothing is owed.
        assert_eq!(allowance.spend(Duration::ZERO, put_off), Duration::ZERO);
    }

    #[test]
    fn in_the_long_run_beats_take_their_share() {
        let mut allowance = Allowance::full();
        let (cost, mut taken, mut passed) = (MS, Duration::ZERO, Duration::ZERO);
        let mut last = Duration::ZERO;
        for _ in 0..10_000 {
            last = allowance.spend(cost, last).max(5 * MS);
            taken += cost;
            passed += last;
        }
        assert!(taken < passed / BEAT_SHARE + SAVED + cost, "{taken:?} of {passed:?}");
        assert!(taken > passed / BEAT_SHARE / 2, "{taken:?} of {passed:?}");
    }
}
