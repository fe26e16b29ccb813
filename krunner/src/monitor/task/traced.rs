//! What the task keeps while a tracer is attached: the names of cgroups, and what to compare with the counter when records
//! of kills were dropped.
//!
//! The counter is not read otherwise: its files stay open, so that the comparison opens none right after a kill. Where
//! each cgroup counts for itself (v1), a cgroup that came and went between two comparisons was not counted; then fewer
//! kills are found missing than there are, and never more.

use std::sync::{Arc, Mutex, PoisonError};

use super::Task;
use crate::monitor::attribution::accounted::Accounted;
use crate::monitor::cgroup::counter::KillCounter;
use crate::monitor::cgroup::names::CgroupNames;
use crate::monitor::cgroup::{Cgroup, CgroupFacts};
use crate::monitor::clock;
use crate::monitor::engine::is_of_interest;
use crate::monitor::event::{ProcessKey, Trace, TraceEvent};

pub(super) struct Traced {
    names: Option<CgroupNames>,
    accounted: Accounted,
    counter: Option<Arc<Mutex<KillCounter>>>,
}

impl Traced {
    /// With the counter that stood in for the tracer. `may_open`: there is memory enough to look at all cgroups now.
    pub(super) fn start(cgroup: Option<Cgroup>, counter: Option<Arc<Mutex<KillCounter>>>, may_open: bool) -> Self {
        let mut names = cgroup.map(CgroupNames::new);
        if let Some(names) = names.as_mut().filter(|_| may_open) {
            names.walk();
        }
        Self { names, accounted: Accounted::default(), counter }
    }

    /// Takes an event in.
    pub(super) fn saw(&mut self, event: &TraceEvent, now_ns: u64) {
        match (&event.what, &mut self.names) {
            (Trace::CgroupMade(made), Some(names)) => names.made(made.id, made.parent_id, &made.name),
            (what, names) => {
                let cgroup_id = if let Trace::Kill(kill) = what { kill.cgroup_id } else { None };
                let is_ours = names.as_ref().zip(cgroup_id).and_then(|(names, id)| names.is_ours(id));
                self.accounted.saw(event, is_ours.unwrap_or(true), now_ns);
            }
        }
    }

    /// What is known now of the cgroup with this id; `None` when it is not known which one that is. Opens files.
    pub(super) fn figures(&mut self, cgroup_id: Option<u64>) -> Option<CgroupFacts> {
        self.names.as_mut()?.facts(cgroup_id?)
    }

    /// Whether records of kills were dropped and the counter is still to be compared.
    pub(super) fn is_comparison_pending(&self) -> bool {
        self.accounted.is_waiting()
    }

    /// How many kills the counter has that the last comparison did not have, if it is to be compared now. All that the
    /// tracer has by then is to be passed to [`Self::saw`] before [`Self::missing`] is asked.
    fn count_if_due(&mut self, now_ns: u64) -> Option<u64> {
        if !self.accounted.is_due(now_ns) {
            return None;
        }
        let Some(counter) = &self.counter else { return Some(0) };
        let mut counter = counter.lock().unwrap_or_else(PoisonError::into_inner);
        // Cgroups that came meanwhile count, too.
        counter.look();
        Some(counter.take().kills.iter().map(|kills| kills.number).sum())
    }

    /// Of the kills that were counted, how many were not seen.
    fn missing(&mut self, counted: u64) -> u64 {
        self.accounted.missing(counted)
    }
}

impl Task {
    /// Those of the victim's cgroup, read before that is gone.
    pub(super) fn figures(&mut self, event: &TraceEvent) -> Option<CgroupFacts> {
        let Trace::Kill(kill) = &event.what else { return None };
        let is_wanted = is_of_interest(kill) && self.held_until_ns.is_none();
        self.traced.as_mut().filter(|_| is_wanted)?.figures(kill.cgroup_id)
    }

    /// Whom the kernel killed where it kills all of a cgroup at once.
    pub(super) fn group_victim(&self, event: &TraceEvent, figures: Option<&CgroupFacts>) -> Option<ProcessKey> {
        let Trace::Kill(kill) = &event.what else { return None };
        let is_group = || match (&self.cgroup, figures) {
            (Some(cgroup), Some(figures)) => cgroup.kills_groups_at(&figures.path),
            _ => self.charge.kills_groups(),
        };
        (is_of_interest(kill) && is_group()).then_some(kill.victim)
    }

    /// Kills that were counted and that the new tracer did not see: they were before it.
    pub(super) fn take_over_from_counter(&mut self) {
        let (Some(ring), Some(counter)) = (&mut self.ring, &self.counter) else { return };
        let mut count = counter.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Later than the count, so that none is missed.
        let seen = ring.read_all();
        let is_counted =
            |event: &&TraceEvent| event.at_boot_ns <= count.at_boot_ns && matches!(event.what, Trace::Mark(_));
        let marks = seen.iter().filter(is_counted).count();
        count.leave_out(marks as u64);
        // Whoever takes over scans anyway.
        let _ = self.engine.counted(count);
        self.traced(&seen);
    }

    /// Records of kills were dropped: what the counter has beyond those that were seen is told as a number.
    pub(super) fn compare_with_counter(&mut self) {
        let now_ns = clock::boot_ns();
        let traced = self.traced.as_mut().filter(|_| self.held_until_ns.is_none());
        let Some(counted) = traced.and_then(|traced| traced.count_if_due(now_ns)) else { return };
        self.read_all();
        let missing = self.traced.as_mut().map_or(0, |traced| traced.missing(counted));
        self.engine.missed(missing);
    }
}
