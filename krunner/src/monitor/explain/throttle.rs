//! When to report that the kernel slows a cgroup down at `memory.high` (cgroup v2). Pure.
//!
//! Above `memory.high` the kernel kills nothing: a task that is charged for memory reclaims some and then sleeps, up to 2 s at a time
//! (`mem_cgroup_handle_over_high`, mm/memcontrol.c). Reclaiming page cache is no problem, so it is the time lost that counts.
//!
//! ```text
//!           a quarter of the time lost, twice in a row
//!  running ────────────────────────────────────────────▶ throttled: reported
//!     ▲           (not within 60 s of the last report)       │
//!     └──────────────────── less for 10 s ──────────────────┘
//! ```

const S_NS: u64 = 1_000_000_000;

/// The part of the time in which tasks wait for memory.
const STALLED_PERCENT: u64 = 25;

/// After this time without such a loss it is over.
const CALM_NS: u64 = 10 * S_NS;

/// Minimum time between two reports.
const PAUSE_NS: u64 = 60 * S_NS;

/// The state of the cgroup that is closest to its `memory.high`, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::monitor) struct ThrottleReading {
    /// Nanoseconds since boot.
    pub(in crate::monitor) at_boot_ns: u64,
    /// Levels above our own cgroup; 0 is our own.
    pub(in crate::monitor) level: usize,
    /// Memory in use.
    pub(in crate::monitor) usage_bytes: u64,
    /// Its `memory.high`, from which on tasks are slowed down.
    pub(in crate::monitor) high_bytes: u64,
    /// How often tasks were throttled so far (`high` of `memory.events`).
    pub(in crate::monitor) times: u64,
    /// Time in which tasks waited for memory so far; `None` if the kernel does not measure it.
    pub(in crate::monitor) stalled_us: Option<u64>,
    /// The part of the usage that cannot be reclaimed, if the time is not measured.
    pub(in crate::monitor) needed_bytes: Option<u64>,
}

/// A cgroup that is slowed down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::monitor) struct Throttled {
    /// The part of the time in which tasks wait for memory; `None` if the kernel does not measure it.
    pub(in crate::monitor) stalled_percent: Option<u64>,
}

/// Decides when to report it.
#[derive(Debug, Default)]
pub(in crate::monitor) struct ThrottleRule {
    before: Option<ThrottleReading>,
    /// The last reading that found the cgroup slowed down.
    slow_at_ns: Option<u64>,
    reported_at_ns: Option<u64>,
    is_reported: bool,
}

impl ThrottleRule {
    /// Takes a reading, every few seconds. `Some` if it is time for a report.
    pub(in crate::monitor) fn observe(&mut self, now: ThrottleReading) -> Option<Throttled> {
        let before = self.before.replace(now)?;
        let found = throttled(&before, &now);
        let was_slow = self.slow_at_ns == Some(before.at_boot_ns);
        let since_ns = |at_ns: Option<u64>| at_ns.map_or(u64::MAX, |at_ns| now.at_boot_ns.saturating_sub(at_ns));
        if self.is_reported && since_ns(self.slow_at_ns) >= CALM_NS && found.is_none() {
            self.is_reported = false;
        }
        let found = found?;
        self.slow_at_ns = Some(now.at_boot_ns);
        if !was_slow || self.is_reported || since_ns(self.reported_at_ns) < PAUSE_NS {
            return None;
        }
        self.is_reported = true;
        self.reported_at_ns = Some(now.at_boot_ns);
        Some(found)
    }
}

/// What happened between two readings.
fn throttled(before: &ThrottleReading, now: &ThrottleReading) -> Option<Throttled> {
    if before.level != now.level || now.times <= before.times {
        return None;
    }
    let took_us = now.at_boot_ns.saturating_sub(before.at_boot_ns) / 1000;
    let stalled_us = now.stalled_us.zip(before.stalled_us).map(|(now, before)| now.saturating_sub(before));
    let percent = stalled_us.map(|us| (us.saturating_mul(100) / took_us.max(1)).min(100));
    let is_slow = match percent {
        Some(percent) => percent >= STALLED_PERCENT,
        // What cannot be reclaimed is beyond the limit, so that tasks sleep.
        None => now.needed_bytes.is_some_and(|bytes| bytes >= now.high_bytes),
    };
    is_slow.then_some(Throttled { stalled_percent: percent })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIGH: u64 = 1000;

    /// The seconds of reports, for readings every 2 s with this part of the time lost.
    fn reports(seconds: u64, lost_percent: impl Fn(u64) -> u64) -> Vec<u64> {
        let mut rule = ThrottleRule::default();
        let (mut stalled_us, mut times) = (0, 0);
        let mut reported = Vec::new();
        for at_s in (0..seconds).step_by(2) {
            let percent = lost_percent(at_s);
            stalled_us += 2 * 10_000 * percent;
            times += u64::from(percent > 0);
            let reading = ThrottleReading {
                at_boot_ns: (1000 + at_s) * S_NS,
                level: 0,
                usage_bytes: HIGH,
                high_bytes: HIGH,
                times,
                stalled_us: Some(stalled_us),
                needed_bytes: None,
            };
            if let Some(throttled) = rule.observe(reading) {
                assert_eq!(throttled.stalled_percent, Some(percent));
                reported.push(at_s);
            }
        }
        reported
    }

    #[test]
    fn lost_time_is_reported_once() {
        assert_eq!(reports(300, |at_s| if at_s < 10 { 0 } else { 90 }), [12]);
        assert_eq!(reports(300, |_| 20), [0; 0], "page cache that is reclaimed");
        assert_eq!(reports(300, |at_s| if at_s % 20 == 0 { 90 } else { 0 }), [0; 0], "a moment");
    }

    #[test]
    fn it_is_reported_again_when_it_was_over() {
        assert_eq!(reports(300, |at_s| if (100..130).contains(&at_s) { 0 } else { 50 }), [4, 132]);
        assert_eq!(reports(300, |at_s| if (20..34).contains(&at_s) { 0 } else { 50 }), [4, 64], "not within a minute");
        assert_eq!(reports(300, |at_s| if (100..106).contains(&at_s) { 0 } else { 50 }), [4], "not over");
    }

    #[test]
    fn without_measured_time_it_is_what_cannot_be_reclaimed() {
        let report = |needed_bytes: u64| {
            let mut rule = ThrottleRule::default();
            let reading = |number: u64| ThrottleReading {
                at_boot_ns: number * 2 * S_NS,
                level: 0,
                usage_bytes: HIGH + 1,
                high_bytes: HIGH,
                times: number,
                stalled_us: None,
                needed_bytes: Some(needed_bytes),
            };
            (1..9).find_map(|number| rule.observe(reading(number)))
        };
        assert_eq!(report(HIGH), Some(Throttled { stalled_percent: None }));
        assert_eq!(report(HIGH - 1), None);
    }

    #[test]
    fn readings_of_two_cgroups_are_not_compared() {
        let mut rule = ThrottleRule::default();
        for number in 0..9 {
            let reading = ThrottleReading {
                at_boot_ns: number * 2 * S_NS,
                level: usize::try_from(number % 2).unwrap(),
                usage_bytes: HIGH,
                high_bytes: HIGH,
                times: number,
                stalled_us: Some(number * 2_000_000),
                needed_bytes: None,
            };
            assert_eq!(rule.observe(reading), None);
        }
    }
}
