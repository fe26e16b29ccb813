//! State of the task while a tracer is attached: names of cgroups, and the comparison with the cgroup's counter after
//! records of OOM kills were dropped.
//!
//! The counter is used only for that comparison. Its files stay open, so that nothing is opened right after an OOM
//! kill. In cgroup v1, where each cgroup counts only its own kills, a cgroup that was created and removed between two
//! comparisons is not counted; the number of missed kills may then be too low, never too high.

use std::sync::{Arc, Mutex, PoisonError};

use super::MonitorTask;
use crate::monitor::attribution::engine::is_of_interest;
use crate::monitor::attribution::kill_accounting::{KillAccounting, counted_kills};
use crate::monitor::explain::{CgroupView, LimitHit, LimitScope, MemoryFacts};
use crate::monitor::model::cgroup::CgroupFacts;
use crate::monitor::model::clock;
use crate::monitor::model::event::{Kill, Trace, TraceEvent};
use crate::monitor::model::process::ProcessKey;
use crate::monitor::sources::cgroup::Cgroup;
use crate::monitor::sources::cgroup::counter::KillCounter;
use crate::monitor::sources::cgroup::limits::LimitCounters;
use crate::monitor::sources::cgroup::names::CgroupNames;
use crate::monitor::sources::schedule::TickMode;

pub(super) struct TracerState {
    names: Option<CgroupNames>,
    limits: LimitCounters,
    accounting: KillAccounting,
    counter: Option<Arc<Mutex<KillCounter>>>,
    /// Kills until then were counted before the tracer took over.
    counted_until_ns: u64,
}

impl TracerState {
    /// Takes over the counter of the fallback. `may_open`: there is enough memory to walk all cgroups now.
    pub(super) fn start(cgroup: Option<Cgroup>, counter: Option<Arc<Mutex<KillCounter>>>, may_open: bool) -> Self {
        let limits = LimitCounters::open(cgroup.as_ref());
        let mut names = cgroup.map(CgroupNames::new);
        if let Some(names) = names.as_mut().filter(|_| may_open) {
            names.walk();
        }
        Self { names, limits, accounting: KillAccounting::default(), counter, counted_until_ns: 0 }
    }

    /// Notes that all kills until then were counted. Returns those among these events.
    fn take_over(&mut self, events: &[TraceEvent], until_ns: u64) -> Vec<(ProcessKey, u64)> {
        self.counted_until_ns = until_ns;
        counted_kills(events, |kill| self.is_counted(kill.cgroup_id), until_ns)
    }

    /// Whether the counter includes kills in this cgroup.
    fn is_counted(&self, cgroup_id: Option<u64>) -> bool {
        self.names.as_ref().zip(cgroup_id).and_then(|(names, id)| names.is_ours(id)).unwrap_or(true)
    }

    /// Processes an event of the tracer.
    pub(super) fn record(&mut self, event: &TraceEvent, now_ns: u64) {
        match (&event.what, &mut self.names) {
            (Trace::CgroupMade(made), Some(names)) => names.add_created(made.id, made.parent_id, &made.name),
            (what, _) => {
                let cgroup_id = if let Trace::Kill(kill) = what { kill.cgroup_id } else { None };
                let is_counted = self.is_counted(cgroup_id) && event.at_boot_ns > self.counted_until_ns;
                self.accounting.observe(event, is_counted, now_ns);
            }
        }
    }

    /// Reads the memory facts of an OOM kill. `may_open`: there is enough memory to open files.
    fn facts(&mut self, kill: &Kill, may_open: bool) -> MemoryFacts {
        let cgroup = if may_open { self.cgroup_facts(kill.cgroup_id) } else { None };
        let names = self.names.as_ref();
        let view = |id: Option<u64>| match names {
            Some(names) => names.view(id, kill.cgroup_id),
            None => CgroupView { scope: LimitScope::Unknown, path: None },
        };
        let limit = LimitHit::traced(kill.limit, view, self.limits.machine(), kill.sender.is_none());
        let id = kill.limit.and_then(|limit| limit.cgroup_id).filter(|_| limit.scope != LimitScope::Machine);
        let of_other = |id: u64| names.filter(|_| may_open)?.usage(id);
        let usage = id.and_then(|id| self.limits.usage_by_id(id).or_else(|| of_other(id)));
        MemoryFacts { cgroup, limit: Some(limit), usage, ..MemoryFacts::default() }
    }

    /// Reads the facts of the cgroup with this id; `None` if the id is unknown. Opens files.
    pub(super) fn cgroup_facts(&mut self, cgroup_id: Option<u64>) -> Option<CgroupFacts> {
        self.names.as_mut()?.facts(cgroup_id?)
    }

    /// Whether records of OOM kills were dropped and the counter has not been compared yet.
    pub(super) fn is_comparison_pending(&self) -> bool {
        self.accounting.is_waiting()
    }

    /// If a comparison is due, the number of kills counted since the last one. The caller must pass all records of the
    /// tracer to [`Self::record`] before it calls [`Self::missing`].
    fn count_if_due(&mut self, now_ns: u64) -> Option<u64> {
        if !self.accounting.is_due(now_ns) {
            return None;
        }
        let Some(counter) = &self.counter else { return Some(0) };
        let mut counter = counter.lock().unwrap_or_else(PoisonError::into_inner);
        // Include cgroups that were created in the meantime.
        counter.poll(TickMode::Infer);
        Some(counter.take().kills.iter().map(|kills| kills.number).sum())
    }

    /// How many of the counted kills have no record.
    fn missing(&mut self, counted: u64) -> u64 {
        self.accounting.missing(counted)
    }
}

impl MonitorTask {
    /// Reads the memory facts of an OOM kill, also of one by a user-space OOM killer, before the cgroup is removed.
    pub(super) fn facts(&mut self, event: &TraceEvent) -> Option<MemoryFacts> {
        let Trace::Kill(kill) = &event.what else { return None };
        let may_open = self.held_until_ns.is_none();
        let is_wanted = is_of_interest(kill) || self.engine.is_daemon_kill_for_others(kill);
        self.traced.as_mut().filter(|_| is_wanted).map(|traced| traced.facts(kill, may_open))
    }

    /// The victim of an OOM kill and whether the kernel kills the whole cgroup (`memory.oom.group`), if that can be read.
    pub(super) fn group_setting(&self, event: &TraceEvent, facts: Option<&MemoryFacts>) -> Option<(ProcessKey, bool)> {
        let Trace::Kill(kill) = &event.what else { return None };
        let facts = facts.filter(|_| is_of_interest(kill))?;
        let is_set = match (&self.cgroup, &facts.cgroup) {
            (Some(own), Some(cgroup)) => own.kills_groups_at(&cgroup.path),
            _ => self.charge.kills_groups(),
        };
        // The kernel asks the cgroups from the victim's up to the one whose limit was reached; of those above it nothing matters.
        let all_are_visible = || {
            let is_visible = facts.limit.as_ref().is_some_and(|limit| limit.path.is_some());
            self.cgroup.as_ref().is_some_and(|own| !own.has_group_kills() || is_visible && facts.cgroup.is_some())
        };
        (is_set || all_are_visible()).then_some((kill.victim, is_set))
    }

    /// Passes on OOM kills that were counted before the tracer was attached.
    pub(super) fn take_over_from_counter(&mut self) {
        let (Some(ring), Some(counter)) = (&mut self.ring, &self.counter) else { return };
        let count = counter.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Read after the counter, so that every counted kill that was traced is in it.
        let seen = ring.read_all();
        let until_ns = count.at_boot_ns;
        let traced = self.traced.as_mut();
        let counted = traced.map_or_else(Vec::new, |traced| traced.take_over(&seen, until_ns));
        // The caller requests a scan anyway.
        let _ = self.engine.counted(count);
        // Some may have been counted, or inferred, before.
        for (victim, at_ns) in counted {
            self.engine.counted_and_traced(victim, at_ns);
        }
        self.traced(&seen);
    }

    /// After records of OOM kills were dropped: reports the number of counted kills that have no record.
    pub(super) fn compare_with_counter(&mut self) {
        let now_ns = clock::boot_ns();
        let traced = self.traced.as_mut().filter(|_| self.held_until_ns.is_none());
        let Some(counted) = traced.and_then(|traced| traced.count_if_due(now_ns)) else { return };
        self.read_all();
        let missing = self.traced.as_mut().map_or(0, |traced| traced.missing(counted));
        self.engine.report_missed(missing);
    }
}

#[cfg(test)]
#[path = "traced_tests.rs"]
mod tests;
