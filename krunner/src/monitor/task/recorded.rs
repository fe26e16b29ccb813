//! The task's interface to the flight recorder: memory samples, and changes of the OOM kill count.

use super::MonitorTask;
use crate::monitor::model::{MemorySample, clock};
use crate::monitor::report::recorder::{Record, Recorder};

/// Interval of reading the OOM kill counter, which takes two reads for each cgroup at or above ours.
const COUNT_INTERVAL_NS: u64 = 1_000_000_000;

/// The recorder, and when to read the counter next.
pub(super) struct RecorderState {
    recorder: Recorder,
    count_due_ns: u64,
    /// The last recorded count.
    kills: Option<u64>,
}

impl RecorderState {
    pub(super) fn new(recorder: Recorder) -> Self {
        Self { recorder, count_due_ns: 0, kills: None }
    }
}

impl MonitorTask {
    /// Records a sample if it differs enough from the last one.
    pub(super) fn record_sample(&mut self, sample: &MemorySample) {
        if let Some(recorded) = self.recorded.as_ref().filter(|recorded| recorded.recorder.wants_sample(sample)) {
            recorded.recorder.record_sample(sample);
        }
    }

    /// Records our cgroup's OOM kill count, at most once per second.
    pub(super) fn record_kills(&mut self) {
        let now_ns = clock::boot_ns();
        let Some(recorded) = self.recorded.as_mut().filter(|recorded| recorded.count_due_ns <= now_ns) else { return };
        recorded.count_due_ns = now_ns.saturating_add(COUNT_INTERVAL_NS);
        let kills = self.charge.own_kills();
        if let Some(count) = kills.filter(|_| recorded.kills != kills) {
            recorded.recorder.record(Record::OomKills { count });
            recorded.kills = kills;
        }
    }
}
