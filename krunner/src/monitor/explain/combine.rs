//! Parts of an explanation that are derived from other parts and from the samples.

use super::growth::drop_after_kill;
use super::{Advice, Explanation, Growth, LimitHit, SampleSeries};
use crate::monitor::model::MemorySample;

impl Explanation {
    /// Adds the growth up to that time, from the samples of the cgroup that krunner watches.
    #[must_use]
    pub(in crate::monitor) fn with_growth(self, series: &SampleSeries, at_boot_ns: u64) -> Self {
        let mut samples = series.before(at_boot_ns);
        if !self.limit.as_ref().is_some_and(|limit| limit.is_exact) {
            drop_after_kill(&mut samples);
        }
        let sampled_limit = samples.last().and_then(|sample| sample.limit_bytes);
        let is_other = |limit: &LimitHit| !limit.is_of_watched(sampled_limit);
        if samples.is_empty() || self.limit.as_ref().is_some_and(is_other) {
            return self;
        }
        // A charge failed at that limit, so an unread usage equals the limit.
        if let Some(usage_bytes) = self.limit.as_ref().and_then(|limit| limit.usage_bytes.or(limit.limit_bytes)) {
            append(&mut samples, at_boot_ns, usage_bytes);
        }
        Self { growth: Some(Growth::of(samples)), ..self }
    }

    /// Adds the advice that follows from the other parts.
    #[must_use]
    pub(crate) fn with_advice(self) -> Self {
        let advice = Advice::of(self.limit.as_ref(), self.usage.as_ref(), self.growth.as_ref());
        Self { advice, ..self }
    }
}

/// Adds the usage at the kill as the last sample.
fn append(samples: &mut Vec<MemorySample>, at_boot_ns: u64, usage_bytes: u64) {
    if let Some(last) = samples.last().filter(|last| last.at_boot_ns < at_boot_ns) {
        let sample = MemorySample { at_boot_ns, usage_bytes, processes: Vec::new(), ..last.clone() };
        samples.push(sample);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::explain::LimitScope;
    use crate::monitor::model::LimitKind;

    const MIB: u64 = 1 << 20;
    const MS: u64 = 1_000_000;

    fn series(mib_at_ms: &[(u64, u64)]) -> SampleSeries {
        let mut series = SampleSeries::default();
        for (at_ms, mib) in mib_at_ms {
            series.push(MemorySample {
                at_boot_ns: at_ms * MS,
                usage_bytes: mib * MIB,
                inactive_file_bytes: None,
                limit_bytes: Some(256 * MIB),
                processes: Vec::new(),
            });
        }
        series
    }

    fn growth(series: &SampleSeries, limit_mib: u64, usage_bytes: Option<u64>) -> Option<Growth> {
        let limit = LimitHit {
            scope: LimitScope::Container,
            kind: LimitKind::Memory,
            path: None,
            limit_bytes: Some(limit_mib * MIB),
            usage_bytes,
            is_trigger_outside: None,
            is_exact: usage_bytes.is_some(),
        };
        let explanation = Explanation { limit: Some(limit), ..Explanation::default() };
        explanation.with_growth(series, 4200 * MS).growth
    }

    fn last_usage(limit_mib: u64, usage_bytes: Option<u64>) -> Option<u64> {
        let series = series(&[(1000, 40), (2000, 40), (3000, 40), (4000, 40)]);
        let growth = growth(&series, limit_mib, usage_bytes);
        growth.map(|growth| growth.samples.last().map_or(0, |sample| sample.usage_bytes))
    }

    #[test]
    fn usage_at_the_kill_ends_the_series() {
        assert_eq!(last_usage(256, Some(255 * MIB)), Some(255 * MIB));
        assert_eq!(last_usage(256, None), Some(256 * MIB), "not read, but the limit was reached");
        assert_eq!(last_usage(64, None), None, "of another cgroup");
    }

    #[test]
    fn growth_of_the_watched_cgroup_is_not_that_of_another() {
        let series = series(&[(1000, 40), (2000, 90), (3000, 140), (4000, 245)]);
        let has_growth = |scope, limit_bytes: Option<u64>| {
            let limit = LimitHit {
                scope,
                kind: LimitKind::Memory,
                path: None,
                limit_bytes,
                usage_bytes: None,
                is_trigger_outside: None,
                is_exact: false,
            };
            let explanation = Explanation { limit: Some(limit), ..Explanation::default() };
            explanation.with_growth(&series, 4200 * MS).growth.is_some()
        };
        let same = Some(256 * MIB);
        assert!(has_growth(LimitScope::Container, same) && has_growth(LimitScope::Container, None));
        assert!(has_growth(LimitScope::Above, same) && !has_growth(LimitScope::Above, None));
        assert!(!has_growth(LimitScope::Inner, None), "of an inner cgroup that has no counter");
        assert!(!has_growth(LimitScope::Outside, None));
        assert!(!has_growth(LimitScope::Beside, same), "a sidecar with an equal limit");
        assert!(!has_growth(LimitScope::Machine, None));
    }

    /// Without BPF the time of the kill is that of the counter reading, so samples before it may be later than the kill.
    #[test]
    fn freed_memory_of_the_victim_is_not_part_of_the_growth() {
        let series = series(&[(1000, 40), (2000, 90), (3000, 140), (4000, 245), (4150, 2)]);
        let shapes =
            [None, Some(256 * MIB)].map(|usage| growth(&series, 256, usage).map(|growth| growth.samples.len()));
        assert_eq!(shapes, [Some(5), Some(6)], "an exact time comes before what is given back");
    }
}
