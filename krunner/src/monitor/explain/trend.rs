//! Extrapolates memory usage by the growth of the last second. Pure.

use std::collections::VecDeque;

/// The time that the rate is taken over.
const WINDOW_NS: u64 = 1_000_000_000;

/// A shorter time gives no rate.
const MIN_SPAN_NS: u64 = 200_000_000;

/// Maximum number of points: one window at the highest sampling rate, and some more.
const MAX_POINTS: usize = 32;

const NS_PER_S: f64 = 1e9;

/// The readings of the last second.
#[derive(Debug, Default)]
pub(in crate::monitor) struct Trend {
    /// Time and bytes, oldest first. The first may be older than the window.
    points: VecDeque<(u64, u64)>,
}

impl Trend {
    /// Adds a reading.
    pub(in crate::monitor) fn push(&mut self, at_ns: u64, bytes: u64) {
        if self.points.back().is_some_and(|(last_ns, _)| *last_ns >= at_ns) {
            return;
        }
        self.points.push_back((at_ns, bytes));
        let is_second_old_enough =
            |points: &VecDeque<(u64, u64)>| points.get(1).is_some_and(|(second_ns, _)| at_ns - second_ns >= WINDOW_NS);
        while self.points.len() > MAX_POINTS || is_second_old_enough(&self.points) {
            self.points.pop_front();
        }
    }

    /// Drops all readings: the following ones are of another cgroup.
    pub(in crate::monitor) fn clear(&mut self) {
        self.points.clear();
    }

    /// Whether there is a reading of the last second.
    #[must_use]
    pub(in crate::monitor) fn is_recent(&self, now_ns: u64) -> bool {
        self.points.back().is_some_and(|(last_ns, _)| now_ns.saturating_sub(*last_ns) <= WINDOW_NS)
    }

    /// The growth rate of the last second; negative if usage fell, `None` if unknown.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "bytes and nanoseconds are more than is told")]
    pub(in crate::monitor) fn rate_bytes_per_s(&self) -> Option<f64> {
        let ((from_ns, from), (to_ns, to)) = (*self.points.front()?, *self.points.back()?);
        let passed_ns = to_ns - from_ns;
        let is_recent = passed_ns <= 3 * WINDOW_NS;
        (passed_ns >= MIN_SPAN_NS && is_recent).then(|| (to as f64 - from as f64) / (passed_ns as f64 / NS_PER_S))
    }

    /// Seconds until usage reaches the limit at that rate; `None` if it does not grow.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "bytes are more than is told")]
    pub(in crate::monitor) fn seconds_until(&self, limit_bytes: u64) -> Option<f64> {
        let (_, now_bytes) = *self.points.back()?;
        let rate = self.rate_bytes_per_s().filter(|rate| *rate > 0.0)?;
        Some(limit_bytes.saturating_sub(now_bytes) as f64 / rate).filter(|seconds| seconds.is_finite())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn trend(points: &[(u64, u64)]) -> Trend {
        let mut trend = Trend::default();
        for (at_ms, bytes) in points {
            trend.push(at_ms * MS, *bytes);
        }
        trend
    }

    #[test]
    fn rate_is_that_of_the_last_second() {
        let points: Vec<(u64, u64)> =
            (0..100).map(|step| (1000 + step * 50, if step < 50 { 0 } else { (step - 50) * 50 })).collect();
        let trend = trend(&points);
        assert_eq!(trend.rate_bytes_per_s(), Some(1000.0));
        assert_eq!(trend.seconds_until(4450), Some(2.0));
        assert!(trend.points.len() <= MAX_POINTS);
    }

    #[test]
    fn short_time_gives_no_rate() {
        assert_eq!(trend(&[(1, 0)]).rate_bytes_per_s(), None);
        assert_eq!(trend(&[(1, 0), (150, 1000)]).rate_bytes_per_s(), None);
        assert_eq!(trend(&[(1, 0), (10_000, 1000)]).rate_bytes_per_s(), None, "nobody looked in between");
        assert_eq!(trend(&[(5, 1), (5, 1000), (4, 7)]).points.len(), 1, "time does not go back");
    }

    #[test]
    fn no_growth_never_reaches_the_limit() {
        assert_eq!(trend(&[(0, 50), (500, 50)]).seconds_until(100), None);
        assert_eq!(trend(&[(0, 50), (500, 10)]).seconds_until(100), None);
        assert_eq!(trend(&[(0, 50), (500, 200)]).seconds_until(100), Some(0.0), "it is there");
    }
}
