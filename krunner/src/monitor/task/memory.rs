//! Memory sampling: reads usage and limit of the cgroup with the least headroom and passes the samples to the engine.
//!
//! ```text
//!  far from the limit: usage every 250 ms, the limit every 2 s
//!  the machine's tracer delivers kills, and usage hardly changes: usage every 2 s, the limit every 10 s
//!  usage changed by 1/16 of the limit: the sizes of the largest processes
//!  70 % used, or full within 10 s at this rate: also memory.stat, every 500 ms
//!  unreclaimable memory fills the limit within 10 s: every 50 ms, with the sizes of the largest processes
//!  an OOM kill here ends this process as well (memory.oom.group), and 2 GiB or less are left: usage every 50 ms, a sample
//!  once it has grown by 1/16 of the limit; the flight recorder is all that remains
//!  memory.high (cgroup v2) of every level, and what is lost by it: every 2 s
//! ```
//!
//! The files are kept open and were read before, so reading them takes a few microseconds and no memory. `/proc` is
//! read only if there is headroom: see `sources::cgroup::charge`.

use std::time::Duration;

use super::MonitorTask;
use crate::monitor::attribution::engine::ProcessSizes;
use crate::monitor::explain::Trend;
use crate::monitor::model::{MemorySample, ProcessMemory, clock};
use crate::monitor::report::recorder::BURST_PART;
use crate::monitor::sources::cgroup::charge::{ChargedMemory, MemoryStat};

/// Sample interval while memory grows fast, and read interval where a burst must not be missed.
pub(super) const DENSE_TICK: Duration = Duration::from_millis(50);

/// Less than the idle tick of 250 ms, which may be late, so that each tick takes a sample.
const CALM_PAUSE_NS: u64 = 200 * MS;

/// The same for dense ticks.
const DENSE_PAUSE_NS: u64 = 40 * MS;

/// How often to check which limit is the nearest; limits rarely change.
const LIMIT_PAUSE_NS: u64 = 2000 * MS;

/// The same while ticks are quiet.
const QUIET_LIMIT_PAUSE_NS: u64 = 10_000 * MS;

/// How often to check whether the kernel slows programs down at `memory.high`.
const THROTTLE_PAUSE_NS: u64 = 2000 * MS;

/// How often to add the process sizes known from snapshots.
const KNOWN_PROCESSES_PAUSE_NS: u64 = 2000 * MS;

/// Time between reads of `memory.stat` if nothing grows.
const STAT_PAUSE_NS: u64 = 450 * MS;

/// Reading `memory.stat` may take up to 1 / this of the time.
const STAT_SHARE: u64 = 200;

/// Time between scans of all processes while memory grows fast: the tracer does not record sizes, and the sampler does not
/// track processes that grow again after a pause.
const SCAN_PAUSE_NS: u64 = 1000 * MS;

/// Known process sizes are outdated when the usage has changed by more than 1 / this of the limit.
const CHANGED_SHARE: u64 = 16;

/// Usage hardly changes if it has changed by at most 1 / this of the limit since the limits were read.
const STILL_SHARE: u64 = 64;

/// Usage in percent of the limit from which on `memory.stat` is read.
const STAT_PERCENT: u64 = 70;

/// Memory that fills the limit within this time grows fast.
const SOON_S: f64 = 10.0;

/// With more headroom than this, idle ticks notice a burst: a core touches about 4 GiB of new pages per second.
const GUARDED_HEADROOM_BYTES: u64 = 2 << 30;

/// Another limit is sampled instead only if its headroom is smaller by this factor.
const NEARER: u64 = 2;

/// With less headroom no process is read: opening a file allocates memory, and others fill several GiB per second.
const LOOKING_BYTES: u64 = 8 << 20;

const MS: u64 = 1_000_000;

/// State of memory sampling: last readings and due times.
#[derive(Debug, Default)]
pub(super) struct MemoryWatch {
    /// The cgroup with the least headroom.
    nearest: Option<ChargedMemory>,
    limit_due_ns: u64,
    throttle_due_ns: u64,
    sample_due_ns: u64,
    stat_due_ns: u64,
    scan_due_ns: u64,
    processes_due_ns: u64,
    /// Usage when processes were last read.
    processes_read_at_bytes: u64,
    /// Trend of the usage.
    usage: Trend,
    /// Trend of unreclaimable memory.
    needed: Trend,
    is_dense: bool,
    /// A burst between two samples must not be missed: see [`MonitorTask::is_guarded`].
    is_guarded: bool,
    /// Usage in the last sample.
    sampled_bytes: u64,
    /// Usage hardly changes, far from the limit.
    is_still: bool,
}

impl MemoryWatch {
    /// Whether dense ticks are needed: memory grows fast, or a burst must not be missed.
    pub(super) fn is_dense(&self) -> bool {
        self.is_dense || self.is_guarded
    }

    /// Whether usage hardly changes, so that quiet ticks are enough where kills need not be inferred.
    pub(super) fn is_still(&self) -> bool {
        self.is_still
    }

    fn forget(&mut self) {
        self.usage.clear();
        self.needed.clear();
    }

    /// Whether the share of reclaimable memory matters now.
    fn needs_stat(&self, charged: &ChargedMemory, now_ns: u64) -> bool {
        let Some(limit_bytes) = charged.limit_bytes.filter(|_| now_ns >= self.stat_due_ns) else { return false };
        let is_high = u128::from(charged.usage_bytes) * 100 >= u128::from(limit_bytes) * u128::from(STAT_PERCENT);
        is_high || is_soon(&self.usage, limit_bytes)
    }

    /// Whether the usage has changed enough since processes were last read.
    fn has_changed(&self, charged: &ChargedMemory) -> bool {
        let change_bytes = charged.usage_bytes.abs_diff(self.processes_read_at_bytes);
        charged.limit_bytes.is_some_and(|limit| change_bytes > limit / CHANGED_SHARE)
    }

    /// Whether unreclaimable memory grows fast. If it is unknown, the usage is used instead.
    fn grows_fast(&self, charged: &ChargedMemory, is_needed_known: bool) -> bool {
        let Some(limit_bytes) = charged.limit_bytes else { return false };
        let trend = if is_needed_known { &self.needed } else { &self.usage };
        is_soon(trend, limit_bytes)
    }
}

impl MonitorTask {
    /// Takes a memory sample if one is due.
    pub(super) fn sample_memory(&mut self) {
        let now_ns = clock::boot_ns();
        if self.held_until_ns.is_some() || now_ns < self.memory.sample_due_ns && !self.has_burst() {
            return;
        }
        self.memory.sample_due_ns = now_ns + CALM_PAUSE_NS;
        self.check_throttle(now_ns);
        let before = self.memory.nearest;
        let Some(charged) = self.charged(now_ns) else {
            self.memory.is_still = true;
            return;
        };
        self.memory.is_still = before.is_some_and(|before| is_still(before, charged));
        if !self.memory.is_still {
            self.memory.limit_due_ns = self.memory.limit_due_ns.min(now_ns + LIMIT_PAUSE_NS);
        }
        self.memory.sampled_bytes = charged.usage_bytes;
        // Timestamp after the read: otherwise memory freed by a victim could be sampled before its kill.
        let read_ns = clock::boot_ns();
        self.memory.usage.push(read_ns, charged.usage_bytes);
        let stat = self.stat(&charged, now_ns);
        let needed_bytes = stat.map(|stat| stat.needed_bytes(charged.usage_bytes));
        if let Some(needed_bytes) = needed_bytes {
            self.memory.needed.push(read_ns, needed_bytes);
        }
        self.set_pace(&charged, now_ns);
        let sample = MemorySample {
            at_boot_ns: read_ns,
            usage_bytes: charged.usage_bytes,
            inactive_file_bytes: stat.map(|stat| stat.inactive_file_bytes),
            limit_bytes: charged.limit_bytes,
            processes: self.sampled_processes(&charged, now_ns),
        };
        self.sampled_memory(sample);
        if let Some(needed_bytes) = needed_bytes {
            let may_look = self.ring.is_some() && !self.charge.is_short();
            self.engine.watch_memory(needed_bytes, &self.memory.needed, may_look);
        }
    }

    /// Whether usage has grown a lot since the last sample, where that must not be missed.
    fn has_burst(&self) -> bool {
        let Some(at) = self.memory.nearest.filter(|_| self.memory.is_guarded) else { return false };
        let charged = self.charge.charged_at(at.level, at.limit_bytes);
        let grown_bytes = charged.map_or(0, |charged| charged.usage_bytes.saturating_sub(self.memory.sampled_bytes));
        at.limit_bytes.is_some_and(|limit| grown_bytes > limit / BURST_PART)
    }

    /// Whether the next OOM kill may end this process as well, and soon: then only the flight recorder can say why.
    fn is_guarded(&self, nearest: &ChargedMemory) -> bool {
        self.recorded.is_some() && nearest.headroom_bytes() <= GUARDED_HEADROOM_BYTES && self.charge.kills_groups()
    }

    fn check_throttle(&mut self, now_ns: u64) {
        if now_ns < self.memory.throttle_due_ns {
            return;
        }
        self.memory.throttle_due_ns = now_ns + THROTTLE_PAUSE_NS;
        if let Some(reading) = self.charge.throttle() {
            self.engine.watch_throttle(reading);
        }
    }

    /// Passes a new sample to the recorder and the engine.
    fn sampled_memory(&mut self, sample: MemorySample) {
        self.record_sample(&sample);
        self.engine.sampled_memory(sample);
    }

    /// Usage of the cgroup with the least headroom.
    fn charged(&mut self, now_ns: u64) -> Option<ChargedMemory> {
        let known = self.memory.nearest.and_then(|at| self.charge.charged_at(at.level, at.limit_bytes));
        if now_ns < self.memory.limit_due_ns && known.is_some() {
            return known;
        }
        self.memory.limit_due_ns = now_ns + if self.is_quiet() { QUIET_LIMIT_PAUSE_NS } else { LIMIT_PAUSE_NS };
        let nearest = self.charge.nearest_limit()?;
        let chosen = match self.memory.nearest.and_then(|at| self.charge.read_at(at.level)) {
            Some(same) if nearest.headroom_bytes() >= same.headroom_bytes() / NEARER => same,
            _ => nearest,
        };
        if self.memory.nearest.is_some_and(|before| before.level != chosen.level) {
            self.memory.forget();
            self.engine.forget_samples();
        }
        self.memory.is_guarded = self.is_guarded(&chosen);
        self.memory.nearest = Some(chosen);
        Some(chosen)
    }

    fn stat(&mut self, charged: &ChargedMemory, now_ns: u64) -> Option<MemoryStat> {
        if !self.memory.needs_stat(charged, now_ns) {
            return None;
        }
        let stat = self.charge.stat_at(charged.level);
        let cost_ns = clock::boot_ns().saturating_sub(now_ns);
        self.memory.stat_due_ns = now_ns + cost_ns * STAT_SHARE;
        stat
    }

    /// Schedules the next readings.
    fn set_pace(&mut self, charged: &ChargedMemory, now_ns: u64) {
        let memory = &mut self.memory;
        let is_needed_known = memory.needed.is_recent(now_ns);
        memory.is_dense = memory.grows_fast(charged, is_needed_known);
        if memory.is_dense {
            memory.sample_due_ns = now_ns + DENSE_PAUSE_NS;
        } else {
            memory.stat_due_ns = memory.stat_due_ns.max(now_ns + if is_needed_known { STAT_PAUSE_NS } else { 0 });
        }
    }

    /// Without a tracer, OOM kills are inferred from the sampler's readings. Sizes read in between, of a process that
    /// has just started or is exiting, would distort them.
    fn sizes_at_hand(&self) -> ProcessSizes {
        if self.ring.is_some() { ProcessSizes::Fresh } else { ProcessSizes::Known }
    }

    /// Without a tracer the sampler's own looks are what a kill is inferred from: none of them is given up for this.
    fn scan_soon(&self) {
        match &self.sampler {
            Some(sampler) if self.ring.is_some() => sampler.scan_now(),
            Some(sampler) => sampler.scan_soon(),
            None => {}
        }
    }

    /// The largest processes, if known or safe to read.
    fn sampled_processes(&mut self, charged: &ChargedMemory, now_ns: u64) -> Vec<ProcessMemory> {
        let is_due = self.memory.is_dense || self.memory.has_changed(charged);
        // The last condition reads files, so it is checked last: an idle machine has hundreds of such sessions.
        if is_due && charged.headroom_bytes() >= LOOKING_BYTES && !self.charge.is_short() {
            self.memory.processes_read_at_bytes = charged.usage_bytes;
            if self.memory.is_dense && now_ns >= self.memory.scan_due_ns {
                self.memory.scan_due_ns = now_ns + SCAN_PAUSE_NS;
                self.scan_soon();
            }
            return self.engine.large_processes(self.sizes_at_hand(), now_ns);
        }
        if now_ns < self.memory.processes_due_ns {
            return Vec::new();
        }
        self.memory.processes_due_ns = now_ns + KNOWN_PROCESSES_PAUSE_NS;
        self.engine.large_processes(ProcessSizes::Known, now_ns)
    }
}

fn is_still(before: ChargedMemory, charged: ChargedMemory) -> bool {
    let Some(limit_bytes) = charged.limit_bytes else { return true };
    let is_low = u128::from(charged.usage_bytes) * 100 < u128::from(limit_bytes) * u128::from(STAT_PERCENT);
    before.level == charged.level
        && is_low
        && charged.usage_bytes.abs_diff(before.usage_bytes) <= limit_bytes / STILL_SHARE
}

fn is_soon(trend: &Trend, limit_bytes: u64) -> bool {
    trend.seconds_until(limit_bytes).is_some_and(|seconds| seconds <= SOON_S)
}
