//! How memory grew before the kill. Pure: samples in, shape and rate out.
//!
//! The analysis uses the memory that a program cannot give back: usage minus reclaimable file pages. A garbage collector makes it
//! go up and down. What counts is the memory that stays, so each point takes the minimum of all later ones:
//!
//! ```text
//!  leak                 step                  burst
//!            ／│               ┌────│                  │
//!        ／    │          ┌────┘    │                 ／
//!    ／        │      ────┘         │      ──────────╯ │
//! ```

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::monitor::model::MemorySample;

/// How memory grew over time, as told apart by rate and plateaus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum GrowthShape {
    /// About the same rate for most of the time.
    Leak,
    /// From one plateau to a higher one, which lasted a while.
    Step,
    /// From a plateau to the limit within seconds.
    Burst,
}

/// How memory grew before a kill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Growth {
    /// Shape of the growth; `None` if there are too few samples.
    pub shape: Option<GrowthShape>,
    /// Rate while it grew to the limit.
    pub rate_bytes_per_s: Option<f64>,
    /// Duration of that growth.
    pub duration_s: Option<f64>,
    /// The samples, oldest first.
    pub samples: Vec<MemorySample>,
}

/// Fewer samples give no shape.
const MIN_SAMPLES: usize = 3;

/// Less growth than this share of the limit counts only as a slow leak, observed for at least [`SLOW_LEAK_S`] and half of the
/// time.
const MIN_GROWTH: f64 = 0.05;
const SLOW_LEAK_S: f64 = 20.0;

/// Less than this share of the limit is no growth.
const MIN_LEAK: f64 = 0.005;

/// The growth begins at this share of it.
const RISE_START: f64 = 0.05;

/// Maximum variation of a plateau, as a share of the growth.
const PLATEAU_RANGE: f64 = 0.08;

/// Minimum length of a plateau within the growth, in seconds and as a share of the growth's duration.
const PLATEAU_S: f64 = 1.0;
const PLATEAU_SHARE: f64 = 0.15;

/// Minimum height of a step's plateau, as a share of the growth.
const STEP_HEIGHT: f64 = 0.4;

/// Longer growth is no burst.
const MAX_BURST_S: f64 = 4.0;

/// Minimum length of the plateau before a burst.
const MIN_FLAT_S: f64 = 0.5;

/// The victim freed memory if usage fell by more than 1 / [`FREED_SHARE`] within this time before the end.
const FREED_NS: u64 = 1_000_000_000;
const FREED_SHARE: u64 = 32;

const NS_PER_S: f64 = 1e9;

/// A program's memory at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Point {
    /// Seconds since the first sample.
    at_s: f64,
    /// Usage minus reclaimable file pages.
    held: f64,
    /// The minimum of `held` from now on.
    stays: f64,
}

/// An interval in which memory grew.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rise {
    from: Point,
    to: Point,
}

impl Growth {
    /// Analyzes samples up to the kill, oldest first.
    #[must_use]
    pub(in crate::monitor) fn of(samples: Vec<MemorySample>) -> Self {
        let points = points(&samples);
        let full_bytes = samples.last().and_then(|sample| sample.limit_bytes).unwrap_or(0);
        let (shape, rise) = shape(&points, full_bytes).map_or((None, None), |(shape, rise)| (Some(shape), Some(rise)));
        let duration_s = rise.map(Rise::duration_s).filter(|seconds| *seconds > 0.0);
        let rate_bytes_per_s = rise.zip(duration_s).map(|(rise, seconds)| (rise.to.stays - rise.from.stays) / seconds);
        Self { shape, rate_bytes_per_s, duration_s, samples }
    }
}

impl Rise {
    fn duration_s(self) -> f64 {
        self.to.at_s - self.from.at_s
    }
}

/// Drops samples taken after the kill, when the victim's memory was freed. Needed where only a counter gives the time of the
/// kill.
pub(super) fn drop_after_kill(samples: &mut Vec<MemorySample>) {
    let Some(last) = samples.last() else { return };
    let (last_ns, last_bytes) = (last.at_boot_ns, last.usage_bytes);
    let is_late = |sample: &MemorySample| last_ns.saturating_sub(sample.at_boot_ns) <= FREED_NS;
    let late = samples.iter().enumerate().filter(|(_, sample)| is_late(sample));
    let peak = late.max_by_key(|(_, sample)| sample.usage_bytes).map(|(index, sample)| (index, sample.usage_bytes));
    if let Some((index, _)) = peak.filter(|(_, bytes)| last_bytes < *bytes - *bytes / FREED_SHARE) {
        samples.truncate(index + 1);
    }
}

/// The shape of the growth, and the interval for its rate.
#[expect(clippy::cast_precision_loss, reason = "bytes are more than is told")]
fn shape(points: &[Point], full_bytes: u64) -> Option<(GrowthShape, Rise)> {
    let (first, last) = (*points.first()?, *points.last()?);
    let grown = last.stays - first.stays;
    let share = grown / last.held.max(full_bytes as f64).max(1.0);
    if points.len() < MIN_SAMPLES || share < MIN_LEAK {
        return None;
    }
    let found = shape_of_rise(points, grown);
    let is_slow_leak = |rise: Rise| rise.duration_s() >= SLOW_LEAK_S.max((last.at_s - first.at_s) / 2.0);
    found.filter(|(shape, rise)| share >= MIN_GROWTH || *shape == GrowthShape::Leak && is_slow_leak(*rise))
}

fn shape_of_rise(points: &[Point], grown: f64) -> Option<(GrowthShape, Rise)> {
    let (first, last) = (*points.first()?, *points.last()?);
    let mut begun = points.iter().rposition(|point| point.stays <= first.stays + RISE_START * grown).unwrap_or(0);
    while let Some((from, to)) = plateau(&points[begun..], grown) {
        if points[begun + from].held - first.stays >= STEP_HEIGHT * grown {
            return Some((GrowthShape::Step, rise_beside(&points[begun..], (from, to), grown)));
        }
        // A low plateau, such as program startup. The relevant growth begins after it.
        begun += to;
    }
    let whole = Rise { from: points[begun], to: last };
    let is_fast = whole.duration_s() <= MAX_BURST_S;
    // Without a plateau before it, it may have grown like that for long.
    let was_flat = whole.from.at_s >= MIN_FLAT_S;
    let since_zero_s = last.stays / grown * whole.duration_s();
    let is_burst = is_fast && (was_flat || since_zero_s <= MAX_BURST_S);
    Some((if is_burst { GrowthShape::Burst } else { GrowthShape::Leak }, whole))
}

/// The longest plateau, as the indexes of its first and last point.
fn plateau(points: &[Point], grown: f64) -> Option<(usize, usize)> {
    let all_s = points.last()?.at_s - points.first()?.at_s;
    let needed_s = PLATEAU_S.max(PLATEAU_SHARE * all_s);
    let length_s = |(from, to): (usize, usize)| points[to].at_s - points[from].at_s;
    let flat = (0..points.len()).map(|from| (from, flat_until(points, from, PLATEAU_RANGE * grown)));
    let long = flat.filter(|part| length_s(*part) >= needed_s);
    long.max_by(|one, other| length_s(*one).total_cmp(&length_s(*other)))
}

/// The last index up to which all points are within the range.
fn flat_until(points: &[Point], from: usize, range: f64) -> usize {
    let (mut lowest, mut highest) = (f64::INFINITY, f64::NEG_INFINITY);
    let is_flat = |point: &&Point| {
        lowest = lowest.min(point.held);
        highest = highest.max(point.held);
        highest - lowest <= range
    };
    from + points[from..].iter().take_while(is_flat).count().saturating_sub(1)
}

/// The larger of the rises before and after a plateau.
fn rise_beside(points: &[Point], (from, to): (usize, usize), grown: f64) -> Rise {
    let mut begun = 0;
    while let Some((_, end)) = plateau(&points[begun..=from], grown) {
        begun += end;
    }
    let before = Rise { from: points[begun], to: points[from] };
    let after = Rise { from: points[to], to: points[points.len() - 1] };
    let height = |rise: Rise| rise.to.stays - rise.from.stays;
    if height(after) > height(before) { after } else { before }
}

#[expect(clippy::cast_precision_loss, reason = "bytes and nanoseconds are more than is told")]
fn points(samples: &[MemorySample]) -> Vec<Point> {
    let first_ns = samples.first().map_or(0, |sample| sample.at_boot_ns);
    let held = held_bytes(samples);
    let point = |(sample, held): (&MemorySample, u64)| Point {
        at_s: sample.at_boot_ns.saturating_sub(first_ns) as f64 / NS_PER_S,
        held: held as f64,
        stays: held as f64,
    };
    let mut points: Vec<Point> = samples.iter().zip(held).map(point).collect();
    let mut least = f64::INFINITY;
    for point in points.iter_mut().rev() {
        least = least.min(point.held);
        point.stays = least;
    }
    points
}

/// Usage minus reclaimable file pages. Where these were not read, the next reading is used, or else the last one.
pub(in crate::monitor) fn held_bytes(samples: &[MemorySample]) -> Vec<u64> {
    let mut files = vec![None; samples.len()];
    let mut next = None;
    for (index, sample) in samples.iter().enumerate().rev() {
        next = sample.inactive_file_bytes.or(next);
        files[index] = next;
    }
    let mut last = None;
    let held = samples.iter().zip(files).map(|(sample, next)| {
        last = sample.inactive_file_bytes.or(last);
        sample.usage_bytes.saturating_sub(next.or(last).unwrap_or(0))
    });
    held.collect()
}

#[cfg(test)]
#[path = "growth_tests.rs"]
mod tests;
