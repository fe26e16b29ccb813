//! Combines a kill with several victims into one report: the victim that the kernel chose, and its co-victims.
//!
//! Small processes exit first, so co-victims are attributed before the victim that they refer to. They wait for it, and it waits
//! for its exit at most [`CO_VICTIM_PATIENCE_NS`] after that. On several CPUs the chosen victim may exit before the kernel
//! reaches the last group member, so its report waits for [`GROUP_PATIENCE_NS`]. A process killed later gets its own report.

use super::{DeferredReport, MonitorEngine};
use crate::monitor::attribution::correlate::{Attribution, Victim};
use crate::monitor::model::process::ProcessKey;

/// The kernel takes about 10 us per member and logs each to the console.
const GROUP_PATIENCE_NS: u64 = 20_000_000;

/// A victim of several GiB takes a second to exit.
const CO_VICTIM_PATIENCE_NS: u64 = 1_000_000_000;

impl MonitorEngine {
    /// Handles the attributions of one moment.
    pub(super) fn attributed_all(&mut self, mut attributions: Vec<Attribution>, now_ns: u64) {
        attributions.sort_by_key(|attribution| first_victim(attribution).is_some());
        for attribution in attributions {
            match attribution {
                Attribution::Oom(victim) if victim.co_victim_of.is_some_and(|first| self.is_to_be_reported(first)) => {
                    let until_ns = now_ns.saturating_add(CO_VICTIM_PATIENCE_NS);
                    self.co_victims.push(DeferredReport { victim, until_ns, not_before_ns: now_ns });
                }
                attribution => self.attributed(attribution, now_ns),
            }
        }
        self.release_co_victims(now_ns);
    }

    /// Attributes the victims whose co-victims waited until then, exited or not.
    pub(super) fn flush_co_victims(&mut self, by_ns: u64, now_ns: u64) {
        let is_due = |deferred: &&DeferredReport| deferred.until_ns <= by_ns;
        let firsts: Vec<ProcessKey> =
            self.co_victims.iter().filter(is_due).filter_map(|deferred| deferred.victim.co_victim_of).collect();
        for first in firsts {
            if let Some(attribution) = self.correlator.close_victim(first) {
                self.attributed(attribution, now_ns);
            }
        }
        let due: Vec<DeferredReport> = self.co_victims.extract_if(.., |deferred| deferred.until_ns <= by_ns).collect();
        for deferred in due {
            self.attributed(Attribution::Oom(deferred.victim), now_ns);
        }
        self.release_co_victims(now_ns);
    }

    /// Reports co-victims whose first victim was reported, or never will be.
    pub(super) fn release_co_victims(&mut self, now_ns: u64) {
        let (free, co_victims) = std::mem::take(&mut self.co_victims)
            .into_iter()
            .partition(|deferred| !deferred.victim.co_victim_of.is_some_and(|first| self.is_to_be_reported(first)));
        self.co_victims = co_victims;
        let free: Vec<DeferredReport> = free;
        for deferred in free {
            self.attributed(Attribution::Oom(deferred.victim), now_ns);
        }
    }

    fn is_to_be_reported(&self, victim: ProcessKey) -> bool {
        self.correlator.is_open(victim) || self.deferred.iter().any(|deferred| deferred.victim.kill.victim == victim)
    }

    /// Takes the co-victims of this victim, in order of their kills. They are not reported again.
    pub(super) fn take_members(&mut self, first: ProcessKey) -> Vec<Victim> {
        let is_member = |deferred: &mut DeferredReport| deferred.victim.co_victim_of == Some(first);
        let mut members: Vec<Victim> =
            self.co_victims.extract_if(.., is_member).map(|deferred| *deferred.victim).collect();
        members.extend(self.correlator.close_co_victims(first));
        members.retain(|member| self.is_first_report(member.kill.victim));
        members.sort_by_key(|member| member.killed_at_boot_ns);
        for member in &members {
            self.remember_victim(member, member.killed_at_boot_ns);
        }
        members
    }
}

/// How long a victim's report waits for the rest of its group.
pub(super) fn group_patience_ns(victim: &Victim) -> u64 {
    if victim.is_group_kill && victim.co_victim_of.is_none() { GROUP_PATIENCE_NS } else { 0 }
}

/// For a co-victim: the first victim of its kill.
fn first_victim(attribution: &Attribution) -> Option<ProcessKey> {
    match attribution {
        Attribution::Oom(victim) => victim.co_victim_of,
        Attribution::KilledByProcess(_) => None,
    }
}
