//! The memory samples of the last minute: dense at the end, sparse before, bounded in time and bytes. Pure.
//!
//! A burst lasts seconds and is sampled every 50 ms. For older times one sample per second is enough.
//!
//! ```text
//!  now - 60 s            now - 15 s         now - 3 s        now
//!      │    one per second    │   one per 250 ms   │  all of them │
//! ```

use std::collections::VecDeque;
use std::mem::size_of;

use crate::monitor::model::{MemorySample, ProcessMemory};

const MS: u64 = 1_000_000;

/// How long a sample is kept.
const RETENTION_NS: u64 = 60_000 * MS;

/// The distance between samples from this age on, oldest first.
const SPACING_NS: [(u64, u64); 2] = [(15_000 * MS, 1000 * MS), (3000 * MS, 250 * MS)];

/// The same for samples in a report: about 60 at most.
const REPORTED_SPACING_NS: [(u64, u64); 3] = [(10_000 * MS, 2500 * MS), (2000 * MS, 500 * MS), (0, 100 * MS)];

/// Timers fire late, never early. Samples closer than the spacing by this much are kept.
const JITTER_NS: u64 = 10 * MS;

/// How often old samples are thinned out.
const THINNING_NS: u64 = 1000 * MS;

/// Maximum size of all samples, with the allocator's overhead.
const MAX_BYTES: usize = 64 << 10;

/// The allocator's overhead per list.
const ALLOCATION_BYTES: usize = 16;

/// Samples of one cgroup, oldest first.
#[derive(Debug, Default)]
pub(in crate::monitor) struct SampleSeries {
    samples: VecDeque<MemorySample>,
    bytes: usize,
    thinned_at_ns: u64,
}

impl SampleSeries {
    /// Adds a sample. Ignores one that is not later than the last.
    pub(in crate::monitor) fn push(&mut self, sample: MemorySample) {
        let now_ns = sample.at_boot_ns;
        if self.samples.back().is_some_and(|last| last.at_boot_ns >= now_ns) {
            return;
        }
        self.bytes += size_bytes(&sample);
        self.samples.push_back(sample);
        if now_ns.saturating_sub(self.thinned_at_ns) >= THINNING_NS {
            self.thinned_at_ns = now_ns;
            self.thin_out(now_ns);
        }
        while self.bytes > MAX_BYTES {
            self.drop_oldest();
        }
    }

    /// Drops all samples: the following ones are of another cgroup.
    pub(in crate::monitor) fn clear(&mut self) {
        self.samples.clear();
        self.bytes = 0;
    }

    /// All samples, oldest first.
    pub(in crate::monitor) fn iter(&self) -> impl DoubleEndedIterator<Item = &MemorySample> {
        self.samples.iter()
    }

    /// The latest sample.
    #[must_use]
    pub(in crate::monitor) fn last(&self) -> Option<&MemorySample> {
        self.samples.back()
    }

    /// The minute before that time, thinned out for a report.
    #[must_use]
    pub(in crate::monitor) fn before(&self, at_boot_ns: u64) -> Vec<MemorySample> {
        let is_before =
            |sample: &&MemorySample| sample.at_boot_ns <= at_boot_ns && at_boot_ns - sample.at_boot_ns <= RETENTION_NS;
        let samples: Vec<&MemorySample> = self.samples.iter().filter(is_before).collect();
        let times: Vec<u64> = samples.iter().map(|sample| sample.at_boot_ns).collect();
        let kept = spaced(&times, at_boot_ns, &REPORTED_SPACING_NS);
        samples.into_iter().zip(kept).filter(|(_, is_kept)| *is_kept).map(|(sample, _)| sample.clone()).collect()
    }

    fn thin_out(&mut self, now_ns: u64) {
        while self.samples.front().is_some_and(|first| now_ns.saturating_sub(first.at_boot_ns) > RETENTION_NS) {
            self.drop_oldest();
        }
        let times: Vec<u64> = self.samples.iter().map(|sample| sample.at_boot_ns).collect();
        let mut kept = spaced(&times, now_ns, &SPACING_NS).into_iter();
        self.samples.retain(|_| kept.next().unwrap_or(true));
        self.bytes = self.samples.iter().map(size_bytes).sum();
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.samples.pop_front() {
            self.bytes -= size_bytes(&oldest);
        }
    }
}

/// Which of these times, oldest first, to keep so that they have the spacing of their age. The last one is always kept.
fn spaced(times_ns: &[u64], now_ns: u64, spacing_ns: &[(u64, u64)]) -> Vec<bool> {
    let spacing_at = |age_ns: u64| spacing_ns.iter().find(|(from_ns, _)| age_ns >= *from_ns).map_or(0, |found| found.1);
    let mut last_ns: Option<u64> = None;
    let mut is_kept = |index: usize, at_ns: u64| {
        let apart_ns = spacing_at(now_ns.saturating_sub(at_ns)).saturating_sub(JITTER_NS);
        let is_kept = index + 1 == times_ns.len() || last_ns.is_none_or(|last| at_ns - last >= apart_ns);
        if is_kept {
            last_ns = Some(at_ns);
        }
        is_kept
    };
    times_ns.iter().enumerate().map(|(index, at_ns)| is_kept(index, *at_ns)).collect()
}

/// An upper bound: names are shared with the history and other samples.
fn size_bytes(sample: &MemorySample) -> usize {
    let names: usize = sample.processes.iter().map(|process| process.name.len()).sum();
    size_of::<MemorySample>() + sample.processes.capacity() * size_of::<ProcessMemory>() + names + ALLOCATION_BYTES
}

#[cfg(test)]
#[path = "samples_tests.rs"]
mod tests;
