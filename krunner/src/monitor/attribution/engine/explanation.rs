//! Explains a kill: joins the memory readings with the known processes.

use super::MonitorEngine;
use crate::monitor::attribution::correlate::Victim;
use crate::monitor::attribution::history::Candidate;
use crate::monitor::attribution::oom_report::victim_rss;
use crate::monitor::explain::{Explanation, LimitScope, MemoryFacts, MemoryUsage, ProcessUsage};
use crate::monitor::model::mount::MountUsage;
use crate::monitor::model::process::ProcessKey;

/// Processes summed up by their ancestors; the others are small. A query takes about 20 us each.
const MAX_SUMMED: usize = 48;

/// Older tmpfs sizes are not reported.
const MOUNTS_KEPT_NS: u64 = 5_000_000_000;

/// Limits of victims whose co-victims may have reports of their own. A burst of kills needs no more.
const MAX_GROUP_LIMITS: usize = 64;

#[derive(Clone, Copy)]
struct VictimMemory {
    anon_bytes: u64,
    swap_bytes: u64,
}

impl MonitorEngine {
    /// Explains a kill that the tracer saw.
    pub(super) fn explain_traced(&mut self, facts: MemoryFacts, victim: &Victim, members: &[Victim]) -> Explanation {
        let at_ns = victim.killed_at_boot_ns;
        let dead = std::iter::once(victim).chain(members).map(|dead| {
            let key = dead.kill.victim;
            let rss_bytes = victim_rss(&dead.kill.memory, self.history.find(key).as_ref()).unwrap_or(0);
            (key, rss_bytes)
        });
        let dead: Vec<(ProcessKey, u64)> = dead.collect();
        let facts = self.with_limit_of_group(facts, victim);
        let memory = &victim.kill.memory;
        let memory = VictimMemory { anon_bytes: memory.anon_bytes, swap_bytes: memory.swap_bytes };
        self.explain(facts, memory, &dead, at_ns)
    }

    /// All members of a group die for the first victim's limit. When the last SIGKILL is sent, that memory may be freed already.
    /// That no limit is close then does not mean that the machine ran out of memory.
    fn with_limit_of_group(&mut self, facts: MemoryFacts, victim: &Victim) -> MemoryFacts {
        if let Some(limit) = facts.limit.as_ref().filter(|limit| limit.scope != LimitScope::Machine) {
            if self.group_limits.len() == MAX_GROUP_LIMITS {
                self.group_limits.pop_front();
            }
            self.group_limits.push_back((victim.kill.victim, limit.clone()));
            return facts;
        }
        if !victim.is_group_kill && victim.co_victim_of.is_none() {
            return facts;
        }
        let of_first = victim.co_victim_of.and_then(|first| self.group_limits.iter().find(|(key, _)| *key == first));
        MemoryFacts { limit: of_first.map(|(_, limit)| limit.clone()), usage: None, ..facts }
    }

    /// Explains a kill that was only counted.
    pub(super) fn explain_inferred(&self, facts: MemoryFacts, candidate: &Candidate, at_ns: u64) -> Explanation {
        let rss_bytes = candidate.process.rss_bytes;
        let memory = VictimMemory { anon_bytes: rss_bytes, swap_bytes: 0 };
        self.explain(facts, memory, &[(candidate.process.key, rss_bytes)], at_ns)
    }

    fn explain(&self, facts: MemoryFacts, victim: VictimMemory, dead: &[(ProcessKey, u64)], at_ns: u64) -> Explanation {
        let MemoryFacts { cgroup, limit, usage, .. } = facts;
        let is_exact = limit.as_ref().is_some_and(|limit| limit.is_exact);
        let usage = usage.map(|usage| {
            let usage = usage.with_swap_of(victim.swap_bytes);
            let at_kill = limit.as_ref().and_then(|limit| limit.memory_at_kill(usage.swap_bytes.unwrap_or(0)));
            usage.at_kill(at_kill, victim.anon_bytes, is_exact)
        });
        if self.traces_for_others {
            return Explanation { limit, usage, ..Explanation::default() };
        }
        let is_in_container = matches!(&limit, Some(limit) if limit.scope != LimitScope::Machine);
        let with_processes = |usage: MemoryUsage| {
            let processes = self.summed_processes(dead, at_ns, |key| {
                cgroup.as_ref().is_none_or(|cgroup| self.lookup.is_charged(key, cgroup))
            });
            usage.with_trees(&processes).with_mounts(self.mounts_at(at_ns))
        };
        let usage = usage.map(|usage| if is_in_container { with_processes(usage) } else { usage });
        self.with_growth(Explanation { limit, usage, ..Explanation::default() }, at_ns)
    }

    /// The tmpfs mounts, if they were read at about that time.
    fn mounts_at(&self, at_ns: u64) -> Vec<MountUsage> {
        let (seen_ns, mounts) = &self.mounts;
        if seen_ns.saturating_add(MOUNTS_KEPT_NS) < at_ns { Vec::new() } else { mounts.clone() }
    }

    /// The victims and the largest surviving processes, with their ancestors.
    fn summed_processes(
        &self,
        dead: &[(ProcessKey, u64)],
        at_ns: u64,
        is_charged: impl Fn(ProcessKey) -> bool,
    ) -> Vec<ProcessUsage> {
        let mut processes = self.history.with_parents(MAX_SUMMED, dead, at_ns);
        let is_dead = |key: ProcessKey| dead.iter().any(|(dead, _)| *dead == key);
        processes.retain(|process| is_dead(process.key) || is_charged(process.key));
        processes
    }
}
