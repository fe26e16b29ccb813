//! When to warn that memory is running out. Pure: usage and growth rate in; time is a parameter.
//!
//! ```text
//!          90 % in use, or 40 % and the limit within seconds
//!  calm ──────────────────────────────────────────────────────────▶ warned
//!   ▲                        (not within 30 s of the last warning)      │
//!   └─────────────── less than 80 % in use for 2 s ────────────────────┘
//! ```

use crate::monitor::model::process::ProcessKey;
use crate::monitor::model::{MemorySample, ProcessMemory};

use super::SampleSeries;

const S_NS: u64 = 1_000_000_000;

/// From this share of the limit on, always warn; in percent.
const HIGH_PERCENT: u64 = 90;

/// From this share on, warn if the limit is reached within [`SOON_S`].
const GROWING_PERCENT: u64 = 40;

/// Growth of a fifth of the limit per second gets a warning at least one second ahead, with a margin of two.
const SOON_S: f64 = 4.0;

/// Below this share for [`LOW_NS`] the warning is over.
const LOW_PERCENT: u64 = 80;
const LOW_NS: u64 = 2 * S_NS;

/// Minimum time between two warnings.
const PAUSE_NS: u64 = 30 * S_NS;

/// Age range of the sample that a process is compared with.
const COMPARED_NS: std::ops::RangeInclusive<u64> = S_NS / 4..=3 * S_NS;

/// Decides when to warn.
#[derive(Debug, Default)]
pub(in crate::monitor) struct WarningRule {
    is_warned: bool,
    warned_at_ns: Option<u64>,
    low_since_ns: Option<u64>,
}

/// A process that is growing.
#[derive(Debug, Clone, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub(crate) struct GrowingProcess {
    /// Identity and size of the process.
    #[serde(flatten)]
    pub memory: ProcessMemory,
    /// Growth rate of its resident memory.
    pub rate_bytes_per_s: f64,
}

impl GrowingProcess {
    /// Whether it accounts for a substantial part of this growth.
    #[must_use]
    pub(in crate::monitor) fn explains(&self, rate_bytes_per_s: Option<f64>) -> bool {
        const PART: f64 = 0.25;
        rate_bytes_per_s.is_none_or(|rate| self.rate_bytes_per_s >= rate * PART)
    }
}

impl WarningRule {
    /// Whether to warn now. `needed_bytes` is the working set; `seconds_left` the time until it reaches the limit, if it grows.
    #[must_use]
    pub(in crate::monitor) fn observe(
        &mut self,
        now_ns: u64,
        needed_bytes: u64,
        limit_bytes: u64,
        seconds_left: Option<f64>,
    ) -> bool {
        let reaches = |percent: u64| u128::from(needed_bytes) * 100 >= u128::from(limit_bytes) * u128::from(percent);
        self.end_if_low(now_ns, !reaches(LOW_PERCENT));
        let is_soon = reaches(GROWING_PERCENT) && seconds_left.is_some_and(|seconds| seconds <= SOON_S);
        let is_paused = self.warned_at_ns.is_some_and(|at_ns| now_ns.saturating_sub(at_ns) < PAUSE_NS);
        let warns = !self.is_warned && !is_paused && (is_soon || reaches(HIGH_PERCENT));
        if warns {
            self.is_warned = true;
            self.warned_at_ns = Some(now_ns);
            self.low_since_ns = None;
        }
        warns
    }

    fn end_if_low(&mut self, now_ns: u64, is_low: bool) {
        if !is_low {
            self.low_since_ns = None;
            return;
        }
        let since_ns = *self.low_since_ns.get_or_insert(now_ns);
        if now_ns.saturating_sub(since_ns) >= LOW_NS {
            self.is_warned = false;
        }
    }
}

/// The fastest growing process in the samples of the last seconds.
#[must_use]
pub(in crate::monitor) fn fastest_growing(series: &SampleSeries) -> Option<GrowingProcess> {
    let now = series.iter().rev().find(|sample| !sample.processes.is_empty())?;
    let is_comparable = |sample: &&MemorySample| {
        !sample.processes.is_empty() && COMPARED_NS.contains(&(now.at_boot_ns.saturating_sub(sample.at_boot_ns)))
    };
    let before = series.iter().filter(is_comparable).min_by_key(|sample| {
        let ago_ns = now.at_boot_ns - sample.at_boot_ns;
        ago_ns.abs_diff(S_NS)
    });
    let growing = now.processes.iter().filter_map(|process| growth_of(process, now, before));
    growing.max_by(|one, other| one.rate_bytes_per_s.total_cmp(&other.rate_bytes_per_s))
}

/// The growth of a process. A process that started since counts from zero. One that was too small to be listed has no known
/// growth.
#[expect(clippy::cast_precision_loss, reason = "bytes and nanoseconds are more than is told")]
fn growth_of(process: &ProcessMemory, now: &MemorySample, before: Option<&MemorySample>) -> Option<GrowingProcess> {
    let find =
        |key: ProcessKey, sample: &MemorySample| sample.processes.iter().find(|process| process.key == key).cloned();
    let started_ns = process.key.start_boot_ns();
    let compared_ns = before.map_or(now.at_boot_ns.saturating_sub(*COMPARED_NS.end()), |sample| sample.at_boot_ns);
    let (since_ns, had_bytes) = match before.and_then(|before| find(process.key, before)) {
        Some(earlier) => (compared_ns, earlier.rss_bytes),
        None if started_ns >= compared_ns => (started_ns, 0),
        None => return None,
    };
    let seconds = now.at_boot_ns.saturating_sub(since_ns).max(S_NS / 100) as f64 / S_NS as f64;
    let grown = process.rss_bytes.checked_sub(had_bytes).filter(|bytes| *bytes > 0)?;
    Some(GrowingProcess { memory: process.clone(), rate_bytes_per_s: grown as f64 / seconds })
}

#[cfg(test)]
#[path = "warning_tests.rs"]
mod tests;
