//! What an engine does differently that traces for the runners of a machine (`krunner node`).

use super::MonitorEngine;
use crate::monitor::attribution::correlate::{Attribution, Confidence, KilledByProcess, Victim};
use crate::monitor::attribution::kill_event::{DaemonKill, KillEvent};
use crate::monitor::attribution::oom_report::KillEvidence;
use crate::monitor::explain::MemoryFacts;
use crate::monitor::model::detection::TracerKind;
use crate::monitor::model::event::Kill;

/// How long the report of a kill to another container waits for the victim's exit: a large victim takes a second or more to
/// release its memory, and the runner that waits for the report infers the victim meanwhile.
const OTHERS_PATIENCE_NS: u64 = 100_000_000;

impl MonitorEngine {
    /// Traces for the runners of a machine: no rate limit, which is theirs, and none of their processes in a report.
    pub(in crate::monitor) fn trace_for_others(&mut self) {
        self.traces_for_others = true;
    }

    /// Attributes the victims that have waited long enough for their exits.
    pub(super) fn close_for_others(&mut self, now_ns: u64) -> Vec<Attribution> {
        if !self.traces_for_others {
            return Vec::new();
        }
        self.correlator.close_marked_before(now_ns.saturating_sub(OTHERS_PATIENCE_NS))
    }

    /// Whether a victim waits that briefly.
    pub(super) fn is_busy_for_others(&self, now_ns: u64) -> bool {
        self.traces_for_others && self.correlator.has_pending_victim(now_ns)
    }

    /// Whether this is a kill by a user-space OOM killer, for the runners of a machine.
    #[must_use]
    pub(in crate::monitor) fn is_daemon_kill_for_others(&self, kill: &Kill) -> bool {
        self.traces_for_others && kill.daemon.is_some() && !kill.already_pending
    }

    pub(super) fn report_daemon_kill(&mut self, killed: KilledByProcess) {
        let KilledByProcess { kill, killed_at_boot_ns, exited_at_boot_ns } = killed;
        let Some(daemon) = kill.daemon else { return };
        // No limit was reached.
        let cgroup = self.facts.take(kill.victim).and_then(|facts| facts.cgroup);
        self.keep_facts(kill.victim, MemoryFacts { cgroup, ..MemoryFacts::default() });
        let victim = Victim {
            tracer: TracerKind::Bpf,
            confidence: Confidence::Confirmed,
            co_victim_of: None,
            is_group_kill: false,
            trigger: None,
            killed_at_boot_ns,
            exited_at_boot_ns: Some(exited_at_boot_ns),
            kill,
        };
        let report = self.report_of(&victim);
        self.events.push(KillEvent::ByDaemon(Box::new(DaemonKill { daemon, report })));
    }

    /// What a report is made of, with the cgroup of each victim.
    pub(super) fn evidence(
        &mut self,
        victim: &Victim,
        members: &[Victim],
        facts: &MemoryFacts,
    ) -> Option<Box<KillEvidence>> {
        let cgroups: Vec<Option<String>> = members
            .iter()
            .map(|member| self.facts.take(member.kill.victim)?.cgroup.map(|cgroup| cgroup.path))
            .collect();
        self.traces_for_others.then(|| Box::new(KillEvidence::of(victim, members, cgroups, facts)))
    }
}
