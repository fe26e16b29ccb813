//! Looks up processes other than the victim when a report is made, because the history may be stale.

use super::MonitorEngine;
use crate::monitor::attribution::history::{History, ProcessRecord};
use crate::monitor::attribution::infer::badness_bytes;
use crate::monitor::attribution::oom_report::LARGEST;
use crate::monitor::model::cgroup::CgroupFacts;
use crate::monitor::model::process::{ProcessKey, SizeSplit, Sizes};

/// The largest processes to check for existence. As many may have exited since the last scan, as in a large build. A check takes
/// about 10 us; usually the first ones exist.
const LARGEST_ASKED: usize = 256;

/// The largest processes to compare with. A query takes about 20 us each.
const COMPARED: usize = 16;

/// The youngest processes of unknown size to measure for a report: as many as a build starts between two scans.
const NEW_ASKED: usize = 64;

/// Looks up processes at the present moment.
pub(in crate::monitor) trait ProcessLookup: Send + Sync {
    /// Whether this process exists.
    fn has(&self, process: ProcessKey) -> bool;

    /// The process's sizes; `None` if it is gone or cannot be read.
    fn sizes(&self, process: ProcessKey) -> Option<Sizes>;

    /// The breakdown of its memory; `None` if it is gone or cannot be read.
    fn split(&self, process: ProcessKey) -> Option<SizeSplit>;

    /// Whether the process is charged to this cgroup or to one below it.
    fn is_charged(&self, process: ProcessKey, cgroup: &CgroupFacts) -> bool;
}

impl MonitorEngine {
    /// Records which ancestors exist. An ancestor that waits for the victim may exit right after it, before the report; one that
    /// exists now existed at the kill.
    pub(super) fn note_ancestors(&mut self, victim: ProcessKey, at_ns: u64, now_ns: u64) {
        for ancestor in self.history.chain(victim, u64::MAX) {
            match ancestor.gone_at_boot_ns {
                Some(_) => {}
                None if self.lookup.has(ancestor.key) => self.history.mark_present(ancestor.key, now_ns),
                None => self.history.mark_absent(ancestor.key, at_ns),
            }
        }
    }

    /// The largest processes that were alive at that time and did not die with the victim. Normal exits are not traced and the
    /// snapshot may be stale, so every process that the report will name is looked up.
    pub(super) fn largest_others(
        &mut self,
        victim: ProcessKey,
        members: &[ProcessKey],
        at_ns: u64,
    ) -> Vec<(ProcessRecord, Option<SizeSplit>)> {
        for ancestor in self.history.chain(victim, u64::MAX) {
            self.mark_if_gone(&ancestor, at_ns);
        }
        self.measure_new(NEW_ASKED, at_ns);
        let mut largest = Vec::new();
        for known in self.history.largest(LARGEST_ASKED, at_ns) {
            // One that was seen later is marked as gone after that time.
            if known.key != victim
                && !members.contains(&known.key)
                && !(self.mark_if_gone(&known, at_ns) && self.is_gone_at(known.key, at_ns))
            {
                let split = self.lookup.split(known.key);
                largest.push((known, split));
            }
            if largest.len() == LARGEST {
                break;
            }
        }
        largest
    }

    /// Measures the youngest processes, up to `count`. A process that forked or called execve(2) since the last scan has no known
    /// size and may be large.
    pub(super) fn measure_new(&mut self, count: usize, at_ns: u64) {
        for process in self.history.unmeasured(count, at_ns) {
            if let Some(sizes) = self.lookup.sizes(process) {
                self.history.set_sizes(process, sizes);
            }
        }
    }

    /// Marks a process as gone if it no longer exists. Returns whether that is new.
    fn mark_if_gone(&mut self, known: &ProcessRecord, at_ns: u64) -> bool {
        let is_newly_gone = known.gone_at_boot_ns.is_none() && !self.lookup.has(known.key);
        if is_newly_gone {
            self.history.mark_absent(known.key, at_ns);
        }
        is_newly_gone
    }

    fn is_gone_at(&self, key: ProcessKey, at_ns: u64) -> bool {
        self.history.find(key).is_none_or(|known| known.is_gone_at(at_ns))
    }
}

/// What the kernel's badness of the largest existing process that it could have chosen was at least: a quarter of its memory may be
/// newer than the kill.
pub(super) fn largest_spared(
    history: &History,
    lookup: &dyn ProcessLookup,
    cgroup: Option<&CgroupFacts>,
    now_ns: u64,
) -> u64 {
    let is_eligible = |known: &&ProcessRecord| {
        known.oom_score_adj >= 0
            && lookup.has(known.key)
            && cgroup.is_none_or(|cgroup| lookup.is_charged(known.key, cgroup))
    };
    let limit_bytes = cgroup.and_then(|cgroup| cgroup.limit_bytes);
    let at_least = |known: &ProcessRecord| badness_bytes(known, limit_bytes).saturating_sub(known.rss_bytes / 4);
    history.largest(COMPARED, now_ns).iter().filter(is_eligible).map(at_least).max().unwrap_or(0)
}
