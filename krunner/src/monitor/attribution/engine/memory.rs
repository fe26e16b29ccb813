//! Memory over time: the samples of the last minute, their largest processes, and when to warn or to report that the kernel slows
//! programs down.

use super::{KillEvent, MonitorEngine};
use crate::monitor::attribution::history::ProcessRecord;
use crate::monitor::attribution::memory_throttled::MemoryThrottled;
use crate::monitor::attribution::memory_warning::MemoryWarning;
use crate::monitor::explain::{
    Explanation, SampleSeries, ThrottleReading, ThrottleRule, Trend, WarningRule, fastest_growing,
};
use crate::monitor::model::{MemorySample, ProcessMemory};

/// The largest processes, by last known size, to measure for a sample. A lookup takes about 20 us.
const LARGEST_MEASURED: usize = 8;

/// The youngest processes of unknown size to measure for a sample.
const NEW_MEASURED: usize = 8;

#[derive(Debug, Default)]
pub(super) struct MemoryHistory {
    series: SampleSeries,
    rule: WarningRule,
    throttle: ThrottleRule,
}

/// Where the process sizes of a sample come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::monitor) enum ProcessSizes {
    /// The last snapshot.
    Known,
    /// A lookup now.
    Fresh,
}

impl MonitorEngine {
    /// Adds a sample.
    pub(in crate::monitor) fn sampled_memory(&mut self, sample: MemorySample) {
        self.memory.series.push(sample);
    }

    /// Clears the samples: the following ones are of another cgroup.
    pub(in crate::monitor) fn forget_samples(&mut self) {
        self.memory.series.clear();
    }

    /// Warns if memory is running out. `needed_bytes` is the working set of the last sample, and `trend` its trend. `may_look`:
    /// processes may be read now.
    pub(in crate::monitor) fn watch_memory(&mut self, needed_bytes: u64, trend: &Trend, may_look: bool) {
        let Some(sample) = self.memory.series.last() else { return };
        let (at_ns, usage_bytes) = (sample.at_boot_ns, sample.usage_bytes);
        let Some(limit_bytes) = sample.limit_bytes else { return };
        let seconds_to_limit = trend.seconds_until(limit_bytes);
        if !self.memory.rule.observe(at_ns, needed_bytes, limit_bytes, seconds_to_limit) {
            return;
        }
        let rate = trend.rate_bytes_per_s().filter(|_| seconds_to_limit.is_some());
        let processes = if may_look { self.large_processes(ProcessSizes::Fresh, at_ns) } else { self.last_processes() };
        let growing = fastest_growing(&self.memory.series);
        let warning = MemoryWarning::new(
            self.time_of_day(at_ns),
            at_ns,
            usage_bytes,
            needed_bytes,
            limit_bytes,
            rate.zip(seconds_to_limit),
            growing.filter(|growing| growing.explains(rate)),
            processes,
        );
        self.events.push(KillEvent::Warning(Box::new(warning)));
    }

    /// Reports that the kernel slows programs down at `memory.high`. Reads no process: that would take memory, and slow us down, too.
    pub(in crate::monitor) fn watch_throttle(&mut self, reading: ThrottleReading) {
        let Some(throttled) = self.memory.throttle.observe(reading) else { return };
        let time = self.time_of_day(reading.at_boot_ns);
        let processes = self.large_processes(ProcessSizes::Known, reading.at_boot_ns);
        let throttled = MemoryThrottled::new(time, &reading, throttled, processes);
        self.events.push(KillEvent::Throttled(Box::new(throttled)));
    }

    /// The processes of the last sample that has any.
    fn last_processes(&self) -> Vec<ProcessMemory> {
        let shown = self.memory.series.iter().rev().find(|sample| !sample.processes.is_empty());
        shown.map(|sample| sample.processes.clone()).unwrap_or_default()
    }

    /// The largest processes now, largest first.
    #[must_use]
    pub(in crate::monitor) fn large_processes(&mut self, sizes: ProcessSizes, now_ns: u64) -> Vec<ProcessMemory> {
        let memory =
            |known: ProcessRecord| ProcessMemory { key: known.key, name: known.name, rss_bytes: known.rss_bytes };
        let mut processes: Vec<ProcessMemory> = match sizes {
            ProcessSizes::Known => {
                self.history.largest(MemorySample::MAX_PROCESSES, now_ns).into_iter().map(memory).collect()
            }
            ProcessSizes::Fresh => {
                self.measure_new(NEW_MEASURED, now_ns);
                let largest = self.history.largest(LARGEST_MEASURED, now_ns);
                largest.into_iter().filter_map(|known| self.measured(memory(known))).collect()
            }
        };
        processes.sort_by_key(|process| std::cmp::Reverse(process.rss_bytes));
        processes.truncate(MemorySample::MAX_PROCESSES);
        processes.shrink_to_fit();
        processes
    }

    /// The process with its current size; `None` if it is gone.
    fn measured(&self, process: ProcessMemory) -> Option<ProcessMemory> {
        let sizes = self.lookup.sizes(process.key)?;
        Some(ProcessMemory { rss_bytes: sizes.rss_bytes, ..process })
    }

    /// Adds the growth up to the kill and the resulting advice.
    pub(super) fn with_growth(&self, explanation: Explanation, at_boot_ns: u64) -> Explanation {
        explanation.with_growth(&self.memory.series, at_boot_ns).with_advice()
    }
}
