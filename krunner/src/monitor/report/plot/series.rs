//! The data of the chart: samples as layers of processes. Pure.

use std::collections::BTreeMap;

use crate::monitor::model::process::ProcessKey;
use crate::monitor::model::units::mib;
use crate::monitor::model::{MemorySample, ProcessMemory};

/// Processes with a layer of their own: as many as a sample has and as colours can be told apart.
pub(super) const MAX_LAYERS: usize = 5;

/// A layer that is always smaller than this share of the usage is merged into the rest: 1 / this.
const MIN_SHARE: u64 = 100;

const NS_PER_S: f64 = 1e9;

/// Memory over time. All lists are as long as `times_s`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    /// Seconds relative to the kill: 0 and below.
    pub(super) times_s: Vec<f64>,
    pub(super) usage_bytes: Vec<u64>,
    pub(super) limit_bytes: Vec<Option<u64>>,
    /// Bottom layer first, the rest last.
    pub(super) layers: Vec<Layer>,
}

/// The kernel's readings at the kill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AtKill {
    pub(super) limit_bytes: u64,
    /// Memory in use there.
    pub(super) usage_bytes: u64,
    /// The killed processes and the largest survivors.
    pub(super) processes: Vec<ProcessMemory>,
}

/// One colour of the chart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layer {
    /// The process, or a description of the rest.
    pub(super) label: String,
    /// Whether this is the usage beyond the processes.
    pub(super) is_rest: bool,
    /// Its part of the usage, interpolated where it was not read.
    pub(super) bytes: Vec<u64>,
    /// Resident memory where it was read; empty for the rest.
    pub(super) read_bytes: Vec<Option<u64>>,
}

impl Series {
    /// `None` for fewer than two samples, which are no line. Adds the usage at the kill if it is of the sampled cgroup.
    pub(super) fn of(samples: &[MemorySample], killed_at_ns: u64, at_kill: Option<AtKill>) -> Option<Self> {
        let last = samples.last()?;
        let kill_ns = if killed_at_ns < last.at_boot_ns { last.at_boot_ns } else { killed_at_ns };
        let mut samples = samples.to_vec();
        samples.extend(at_kill.and_then(|at_kill| at_kill.sample(last, kill_ns)));
        let mut samples: Vec<&MemorySample> = samples.iter().collect();
        samples.dedup_by_key(|sample| sample.at_boot_ns);
        if samples.len() < 2 {
            return None;
        }
        let times_s: Vec<f64> = samples.iter().map(|sample| seconds_before(sample.at_boot_ns, kill_ns)).collect();
        let usage_bytes: Vec<u64> = samples.iter().map(|sample| sample.usage_bytes).collect();
        let layers = layers(&samples, &times_s, &usage_bytes);
        let limit_bytes = samples.iter().map(|sample| sample.limit_bytes).collect();
        Some(Self { times_s, usage_bytes, limit_bytes, layers })
    }

    /// The maximum of the y axis.
    pub(super) fn max_bytes(&self) -> u64 {
        let limits = self.limit_bytes.iter().copied().flatten();
        limits.chain(self.usage_bytes.iter().copied()).max().unwrap_or(0)
    }

    pub(super) fn has_limit(&self) -> bool {
        self.limit_bytes.iter().any(Option::is_some)
    }

    /// Number of samples with processes.
    pub(super) fn readings(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.read_bytes.iter().flatten().count())
    }

    /// The CSS class of a layer. The style sheet has the colours.
    pub(super) fn class(&self, layer: usize) -> String {
        if self.layers[layer].is_rest { "rest".to_owned() } else { format!("layer-{layer}") }
    }

    /// A description for readers who cannot see the chart.
    pub(super) fn in_words(&self) -> String {
        let last = self.usage_bytes.len() - 1;
        let limit = self.limit_bytes[last].map(|bytes| format!(" of a limit of {}", mib(bytes))).unwrap_or_default();
        format!(
            "Memory in use over the {:.1} seconds before the kill: from {} to {}{limit}. The data is in the table below.",
            -self.times_s[0],
            mib(self.usage_bytes[0]),
            mib(self.usage_bytes[last]),
        )
    }
}

impl AtKill {
    /// Converts it to a sample if it is of the sampled cgroup, which the limit tells.
    fn sample(self, last: &MemorySample, kill_ns: u64) -> Option<MemorySample> {
        (Some(self.limit_bytes) == last.limit_bytes).then(|| MemorySample {
            at_boot_ns: kill_ns,
            usage_bytes: self.usage_bytes,
            processes: self.processes,
            ..last.clone()
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds are more than is shown")]
fn seconds_before(at_ns: u64, kill_ns: u64) -> f64 {
    -(kill_ns.saturating_sub(at_ns) as f64) / NS_PER_S
}

fn layers(samples: &[&MemorySample], times_s: &[f64], usage_bytes: &[u64]) -> Vec<Layer> {
    let layer = |(key, name): (ProcessKey, &str)| {
        let read_bytes = readings(samples, key);
        let bytes = estimated(samples, times_s, key, &read_bytes);
        Layer { label: format!("{} ({})", name.escape_debug(), key.pid), is_rest: false, bytes, read_bytes }
    };
    let mut layers: Vec<Layer> = largest(samples).into_iter().map(layer).collect();
    fit(&mut layers, usage_bytes);
    let rest = |index: usize| {
        let known: u64 = layers.iter().map(|layer| layer.bytes[index]).sum();
        usage_bytes[index].saturating_sub(known)
    };
    let bytes = (0..usage_bytes.len()).map(rest).collect();
    let label = if layers.is_empty() {
        "all memory in use (no processes were sampled)"
    } else {
        "the rest: other processes, tmpfs and shared memory, page cache, kernel"
    };
    layers.push(Layer { label: label.to_owned(), is_rest: true, bytes, read_bytes: Vec::new() });
    layers
}

/// The processes with the largest peaks, largest first.
fn largest<'a>(samples: &[&'a MemorySample]) -> Vec<(ProcessKey, &'a str)> {
    let mut peaks: BTreeMap<ProcessKey, (u64, &str)> = BTreeMap::new();
    for process in samples.iter().flat_map(|sample| &sample.processes) {
        let peak = peaks.entry(process.key).or_insert((0, &process.name));
        // The latest name, because a process may exec.
        *peak = (peak.0.max(process.rss_bytes), &process.name);
    }
    let max_bytes = samples.iter().map(|sample| sample.usage_bytes).max().unwrap_or(0);
    let mut largest: Vec<_> = peaks.into_iter().filter(|(_, (peak, _))| *peak >= max_bytes / MIN_SHARE).collect();
    largest.sort_by_key(|(key, (peak, _))| (std::cmp::Reverse(*peak), *key));
    largest.into_iter().take(MAX_LAYERS).map(|(key, (_, name))| (key, name)).collect()
}

/// A process's resident memory in each sample. `None` where it is unknown: no processes were read, or only larger ones, before
/// its last reading. 0 after its last reading.
fn readings(samples: &[&MemorySample], key: ProcessKey) -> Vec<Option<u64>> {
    let find =
        |sample: &MemorySample| sample.processes.iter().find(|process| process.key == key).map(|found| found.rss_bytes);
    let last = samples.iter().rposition(|sample| find(sample).is_some());
    let reading = |(index, sample): (usize, &&MemorySample)| {
        let is_gone = last.is_none_or(|last| index > last) && !sample.processes.is_empty();
        find(sample).or(is_gone.then_some(0))
    };
    samples.iter().enumerate().map(reading).collect()
}

/// Scales the layers down to the usage where estimates are too high.
fn fit(layers: &mut [Layer], usage_bytes: &[u64]) {
    for (index, usage) in usage_bytes.iter().enumerate() {
        let sum: u64 = layers.iter().map(|layer| layer.bytes[index]).sum();
        for layer in layers.iter_mut().filter(|_| sum > *usage) {
            let part = u128::from(layer.bytes[index]) * u128::from(*usage) / u128::from(sum);
            layer.bytes[index] = u64::try_from(part).unwrap_or(u64::MAX);
        }
    }
}

/// A process's share of the usage. Resident memory is not all charged to this cgroup (proc(5): `VmRSS` includes shared pages and
/// file pages charged to others). Where the sum exceeds the usage, each process gets its share of the sum.
#[expect(clippy::cast_precision_loss, reason = "a point in a chart")]
fn shares(samples: &[&MemorySample], readings: &[Option<u64>]) -> Vec<Option<f64>> {
    let share = |(sample, reading): (&&MemorySample, &Option<u64>)| {
        let resident_bytes: u64 = sample.processes.iter().map(|process| process.rss_bytes).sum();
        let all_bytes = resident_bytes.max(sample.usage_bytes).max(1);
        reading.map(|bytes| bytes as f64 / all_bytes as f64)
    };
    samples.iter().zip(readings).map(share).collect()
}

/// Fills unread values by linear interpolation, or with the only adjacent value.
fn filled(times_s: &[f64], shares: &[Option<f64>]) -> Vec<f64> {
    let known: Vec<(f64, f64)> =
        times_s.iter().zip(shares).filter_map(|(at_s, share)| Some((*at_s, (*share)?))).collect();
    let at = |at_s: f64| {
        let after = known.partition_point(|(known_s, _)| *known_s <= at_s);
        match (after.checked_sub(1).map(|before| known[before]), known.get(after)) {
            (Some((before_s, before)), Some((after_s, after))) => {
                before + (after - before) * (at_s - before_s) / (after_s - before_s)
            }
            (Some((_, share)), None) | (None, Some(&(_, share))) => share,
            (None, None) => 0.0,
        }
    };
    times_s.iter().map(|at_s| at(*at_s)).collect()
}

/// A process's memory in each sample, interpolated where it was not read and 0 before its start.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a point in a chart"
)]
fn estimated(samples: &[&MemorySample], times_s: &[f64], key: ProcessKey, readings: &[Option<u64>]) -> Vec<u64> {
    let shares = filled(times_s, &shares(samples, readings));
    let bytes = |(sample, share): (&&MemorySample, f64)| {
        let has_started = sample.at_boot_ns >= key.start_boot_ns();
        if has_started { (sample.usage_bytes as f64 * share).round() as u64 } else { 0 }
    };
    samples.iter().zip(shares).map(bytes).collect()
}

#[cfg(test)]
#[path = "series_tests.rs"]
mod tests;
