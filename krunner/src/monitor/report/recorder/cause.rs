//! Determines why a recorded process ended, from its recording and the current state. Pure.
//!
//! ```text
//!  goodbye ────────────────────────────────▶ stopped
//!  locked ─────────────────────────────────▶ running
//!  cgroup counted an unreported kill ──────▶ group_kill, killed_at_limit
//!  was shutting down ──────────────────────▶ killed_while_stopping
//!  last samples at the limit ──────────────▶ group_kill, killed_at_limit      unless the counter did not change
//!  another boot ───────────────────────────▶ machine_restarted
//!  last samples far from the limit ────────▶ killed
//! ```

use serde::Serialize;

use super::format::Recording;
use super::record::Record;
use crate::monitor::model::MemorySample;

/// Memory was short from this share of the limit on.
const NEAR_LIMIT_PERCENT: u64 = 95;

/// Below this share, a burst up to the limit within the second between two samples is rare.
const ROOMY_PERCENT: u64 = 50;

/// How far the growth of the last two samples is extrapolated: twice the time between them.
const AHEAD_NS: u64 = 2_000_000_000;

/// Samples further apart give no rate.
const MAX_GAP_NS: u64 = 10_000_000_000;

/// How a recorded process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EndCause {
    /// It is still running.
    Running,
    /// It shut down cleanly.
    Stopped,
    /// It was killed while shutting down, probably because that took too long.
    KilledWhileStopping,
    /// The OOM killer killed all processes of the cgroup (`memory.oom.group`).
    GroupKill,
    /// The OOM killer killed the runner itself, at the limit of its cgroup.
    KilledAtLimit,
    /// SIGKILL from elsewhere, or a crash; memory was not short.
    Killed,
    /// The machine was rebooted.
    MachineRestarted,
    /// There is no evidence.
    Unknown,
}

/// How certain a cause is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Certainty {
    /// The end was recorded.
    Certain,
    /// The evidence fits little else.
    Likely,
    /// Other causes fit as well.
    Possible,
}

/// The current state that a recording is compared with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CurrentState {
    /// A running process holds the file's lock.
    pub is_locked: bool,
    /// The current boot ID, as in the header.
    pub boot_id: String,
    /// The cgroup ID, as in the header: the recorded cgroup if it is visible, else this process's own.
    pub cgroup_id: Option<u64>,
    /// The OOM kill counter of that cgroup.
    pub oom_kill_count: Option<u64>,
}

/// A cause with its evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) cause: EndCause,
    pub(super) certainty: Certainty,
    /// As text, strongest first.
    pub(super) reasons: Vec<String>,
}

impl Finding {
    fn new(cause: EndCause, certainty: Certainty, reason: impl Into<String>) -> Self {
        Self { cause, certainty, reasons: vec![reason.into()] }
    }
}

/// The likeliest cause.
pub(super) fn find_cause(recording: &Recording, now: &CurrentState) -> Finding {
    let evidence = Evidence::of(recording, now);
    evidence
        .recorded_end()
        .or_else(|| {
            now.is_locked.then(|| {
                Finding::new(EndCause::Running, Certainty::Certain, "its recording is locked by a running process")
            })
        })
        .or_else(|| evidence.counted_kill())
        .or_else(|| evidence.was_stopping())
        .or_else(|| evidence.end_at_limit())
        .or_else(|| evidence.other_boot())
        .unwrap_or_else(|| evidence.end_without_shortage())
}

/// The inputs of the rules.
struct Evidence<'a> {
    recording: &'a Recording,
    is_same_boot: bool,
    /// OOM kills that the cgroup counted since its counter was recorded; `None` if the cgroup is not visible.
    counted_kills: Option<u64>,
    last: Option<&'a MemorySample>,
}

impl<'a> Evidence<'a> {
    fn of(recording: &'a Recording, now: &CurrentState) -> Self {
        let header = &recording.header;
        let is_same_boot = header.boot_id == now.boot_id;
        let is_same_cgroup = is_same_boot && header.cgroup_id.is_some() && header.cgroup_id == now.cgroup_id;
        let counts = last_count(recording).zip(now.oom_kill_count).filter(|_| is_same_cgroup);
        let counted_kills = counts.map(|(then, now)| now.saturating_sub(then));
        Self { recording, is_same_boot, counted_kills, last: samples(recording).last() }
    }

    fn recorded_end(&self) -> Option<Finding> {
        let Record::Goodbye { reason } = self.last_event()? else { return None };
        Some(Finding::new(EndCause::Stopped, Certainty::Certain, reason.clone()))
    }

    /// The last event but for counts, which the monitor may record until the process exits.
    fn last_event(&self) -> Option<&Record> {
        let events = self.recording.events.iter().map(|event| &event.record);
        events.rev().find(|record| !matches!(record, Record::OomKills { .. }))
    }

    /// The kernel counts an OOM kill for the victim's cgroup, whichever limit was reached (`__oom_kill_process`,
    /// `mm/oom_kill.c`).
    fn counted_kill(&self) -> Option<Finding> {
        let unreported = self.counted_kills?.saturating_sub(reported_kills(self.recording));
        let reason = format!("the cgroup counted more OOM kills than were reported: {unreported} unreported");
        (unreported > 0).then(|| self.oom_kill(Certainty::Likely, reason))
    }

    fn was_stopping(&self) -> Option<Finding> {
        let Record::Stopping { reason } = self.last_event()? else { return None };
        let reason = format!("it was shutting down ({reason}) and was killed before it finished");
        Some(Finding::new(EndCause::KilledWhileStopping, Certainty::Likely, reason))
    }

    fn end_at_limit(&self) -> Option<Finding> {
        if self.is_kill_excluded() {
            return None;
        }
        let last = self.last?;
        let (usage, limit) = (working_set(last), last.limit_bytes.filter(|limit| *limit > 0)?);
        let percent = |bytes: u64| bytes.saturating_mul(100) / limit;
        if percent(usage) >= NEAR_LIMIT_PERCENT {
            let reason = format!("the last sample shows {} % of the limit in use", percent(usage));
            return Some(self.oom_kill(Certainty::Likely, reason));
        }
        let expected = usage.saturating_add(self.growth_ahead_bytes()?);
        let reason =
            format!("memory was at {} % of the limit and growing fast enough to reach it within 2 s", percent(usage));
        (expected >= limit).then(|| self.oom_kill(Certainty::Possible, reason))
    }

    fn other_boot(&self) -> Option<Finding> {
        let reason = "the boot ID differs: the machine was rebooted, or the recording is from another machine";
        (!self.is_same_boot).then(|| Finding::new(EndCause::MachineRestarted, Certainty::Possible, reason))
    }

    fn end_without_shortage(&self) -> Finding {
        let mut reasons = Vec::new();
        if self.is_kill_excluded() {
            reasons.push("the cgroup counted no further OOM kills".to_owned());
        }
        if let Some(reason) = self.last.map(far_from_limit) {
            reasons.push(reason);
        }
        reasons.extend(slow_down(self.recording));
        if reasons.is_empty() {
            return Finding::new(EndCause::Unknown, Certainty::Possible, "no memory sample was recorded");
        }
        let is_roomy = |sample: &MemorySample| {
            sample.limit_bytes.is_none_or(|limit| working_set(sample) < limit / 100 * ROOMY_PERCENT)
        };
        let certainty = if self.is_kill_excluded() || self.last.is_some_and(is_roomy) {
            Certainty::Likely
        } else {
            reasons.push("a burst between two samples would have gone unnoticed".to_owned());
            Certainty::Possible
        };
        Finding { cause: EndCause::Killed, certainty, reasons }
    }

    fn oom_kill(&self, certainty: Certainty, reason: String) -> Finding {
        let is_group = self.recording.header.kills_groups;
        let mut finding = Finding::new(EndCause::KilledAtLimit, certainty, reason);
        if is_group {
            finding.cause = EndCause::GroupKill;
            finding.reasons.push("memory.oom.group is set: an OOM kill ends every process in the cgroup".to_owned());
        }
        finding
    }

    /// The counter did not change. If it rose by kills that may have been reported, it says nothing about the runner.
    fn is_kill_excluded(&self) -> bool {
        self.counted_kills == Some(0)
    }

    /// Growth within [`AHEAD_NS`] at the current rate.
    fn growth_ahead_bytes(&self) -> Option<u64> {
        let mut latest = samples(self.recording).rev();
        let (last, before) = (latest.next()?, latest.next()?);
        let span_ns = last.at_boot_ns.checked_sub(before.at_boot_ns).filter(|ns| (1..MAX_GAP_NS).contains(ns))?;
        let grown = u128::from(working_set(last).saturating_sub(working_set(before)));
        u64::try_from(grown * u128::from(AHEAD_NS) / u128::from(span_ns)).ok()
    }
}

/// The samples, oldest first.
pub(super) fn samples(recording: &Recording) -> impl DoubleEndedIterator<Item = &MemorySample> {
    recording.samples.iter().filter_map(|dated| match &dated.record {
        Record::Sample(sample) => Some(sample),
        _ => None,
    })
}

/// The last recorded OOM kill counter of the cgroup.
fn last_count(recording: &Recording) -> Option<u64> {
    let counts = recording.events.iter().rev().find_map(|dated| match dated.record {
        Record::OomKills { count } => Some(count),
        _ => None,
    });
    counts.or(recording.header.oom_kill_count)
}

/// Processes named in reports since then.
fn reported_kills(recording: &Recording) -> u64 {
    let latest = recording.events.iter().rev().take_while(|dated| !matches!(dated.record, Record::OomKills { .. }));
    let processes = latest.filter_map(|dated| match dated.record {
        Record::Kill { processes, .. } => Some(processes),
        _ => None,
    });
    processes.sum()
}

/// Reclaimable page cache does not cause an OOM kill.
fn working_set(sample: &MemorySample) -> u64 {
    sample.usage_bytes.saturating_sub(sample.inactive_file_bytes.unwrap_or(0))
}

/// What user-space OOM killers act on.
fn slow_down(recording: &Recording) -> Option<String> {
    let text = recording.events.iter().rev().find_map(|dated| match &dated.record {
        Record::Throttled { text } => Some(text),
        _ => None,
    })?;
    Some(format!(
        "programs had waited for memory ({text}): systemd-oomd kills a container for that, and its log says so \
         (journalctl --unit systemd-oomd)"
    ))
}

fn far_from_limit(sample: &MemorySample) -> String {
    let Some(limit) = sample.limit_bytes.filter(|limit| *limit > 0) else {
        return "the cgroup had no memory limit".to_owned();
    };
    let percent = working_set(sample).saturating_mul(100) / limit;
    format!("the last sample shows {percent} % of the limit in use")
}

#[cfg(test)]
#[path = "cause_tests.rs"]
mod tests;
