//! Kills that the machine's tracer (`krunner node`) delivered. They are reported like those of an own tracer, once each, whether
//! the kernel's counter shows them before or after, or the node came too late and they were inferred.

use super::{DeferredReport, KillEvent, MonitorEngine};
use crate::monitor::attribution::correlate::{Attribution, KilledByProcess, Victim};
use crate::monitor::explain::MemoryFacts;
use crate::monitor::model::event::{Exec, Fork, Kill, ProcessExit, Trace, TraceEvent};
use crate::monitor::model::process::ProcessKey;

/// All members of a kill arrive with it.
const MEMBERS_KEPT_NS: u64 = 1_000_000_000;

/// Victims that are not named and are looked for in the counts. More processes rarely die together.
const MAX_LEFT_OUT: u64 = 1024;

/// A kill as the node saw it, in our numbers.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::monitor) struct DeliveredKill {
    /// The victim, then its co-victims.
    pub(in crate::monitor) victims: Vec<DeliveredVictim>,
    /// Further victims that are not named.
    pub(in crate::monitor) left_out: u64,
    /// The victim's ancestors, outermost first, then the victims.
    pub(in crate::monitor) processes: Vec<DeliveredProcess>,
    pub(in crate::monitor) facts: MemoryFacts,
}

/// A victim of a delivered kill.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::monitor) struct DeliveredVictim {
    pub(in crate::monitor) victim: Victim,
    /// Our counter does not count it: it was in another memory cgroup.
    pub(in crate::monitor) is_uncounted: bool,
}

/// A process of a delivered kill.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::monitor) struct DeliveredProcess {
    pub(in crate::monitor) exec: Exec,
    pub(in crate::monitor) parent_pid: Option<u32>,
    /// Whether it was gone when the victim was killed.
    pub(in crate::monitor) is_gone: bool,
}

impl MonitorEngine {
    /// Whether the machine's tracer delivers kills. Those that are only counted wait for it a moment.
    pub(in crate::monitor) fn node_delivers(&mut self, is_connected: bool, now_ns: u64) {
        self.inference.node_delivers(is_connected.then_some(now_ns));
    }

    /// Kills up to now may be missing in what the machine's tracer delivered. Those that are counted are inferred.
    pub(in crate::monitor) fn node_lost_kills(&mut self, now_ns: u64) {
        self.inference.node_is_complete_from(now_ns);
    }

    /// Handles a delivered kill. Returns whether to scan `/proc` now.
    #[must_use]
    pub(in crate::monitor) fn delivered(&mut self, kill: DeliveredKill, now_ns: u64) -> bool {
        let DeliveredKill { mut victims, left_out, processes, facts } = kill;
        let Some(first) =
            victims.first().map(|DeliveredVictim { victim, .. }| (victim.kill.victim, victim.killed_at_boot_ns))
        else {
            return false;
        };
        victims.retain(|victim| self.is_unreported(&victim.victim, victim.is_uncounted));
        for _ in 0..left_out.min(MAX_LEFT_OUT) {
            // Counted as well. There is no report of them to be left out.
            let _ = self.inference.settle(first.1);
        }
        let victims: Vec<Victim> = victims.into_iter().map(|victim| victim.victim).collect();
        if victims.is_empty() {
            return false;
        }
        self.merge_delivered(&processes, first.1);
        self.keep_facts(first.0, facts);
        let scan = self.prepare_delivered(first.0, first.1, now_ns);
        self.attribute_delivered(first.0, victims, now_ns);
        scan
    }

    /// Handles a delivered kill by a user-space OOM killer. It is not reported; it explains an exit. `daemon` is `None` for one
    /// that this release does not know.
    pub(in crate::monitor) fn delivered_of_daemon(
        &mut self,
        kill: DeliveredKill,
        daemon: Option<&'static str>,
        now_ns: u64,
    ) {
        let Some(DeliveredVictim { victim, .. }) = kill.victims.into_iter().next() else { return };
        self.merge_delivered(&kill.processes, victim.killed_at_boot_ns);
        // Nor is it inferred as the victim of an OOM kill that is counted at the same time.
        let _ = self.is_first_report(victim.kill.victim);
        let kill = Kill { sender: None, daemon, ..victim.kill };
        let at_ns = victim.killed_at_boot_ns;
        let exited_at_boot_ns = victim.exited_at_boot_ns.unwrap_or(at_ns);
        self.killed_by_process(KilledByProcess { kill, killed_at_boot_ns: at_ns, exited_at_boot_ns }, now_ns);
    }

    /// Handles a kill that the counter counted before the own tracer took over, and that the tracer reports as well. It is not
    /// inferred any more; if it was inferred already, also if another process was, the tracer's report is dropped.
    pub(in crate::monitor) fn counted_and_traced(&mut self, victim: ProcessKey, at_ns: u64) {
        if !self.settle_counted(victim, at_ns) {
            // So that it is not reported later.
            let _ = self.is_first_report(victim);
        }
    }

    /// Reports that a tracer dropped records.
    pub(in crate::monitor) fn records_lost(&mut self, records: u64) {
        self.lost_records += records;
        self.events.push(KillEvent::RecordsLost { records });
    }

    fn prepare_delivered(&mut self, victim: ProcessKey, at_ns: u64, now_ns: u64) -> bool {
        if self.is_held {
            self.hold_victim(victim, None);
            return false;
        }
        self.note_ancestors(victim, at_ns, now_ns);
        self.wants_scan(now_ns)
    }

    /// Whether neither the node nor the counter led to a report of this kill.
    fn is_unreported(&mut self, victim: &Victim, is_uncounted: bool) -> bool {
        let at_ns = victim.killed_at_boot_ns;
        if is_uncounted {
            return !self.reported.contains(&victim.kill.victim);
        }
        // The kernel counts each process that it marks, not one that only shares the memory of another.
        let is_counted = victim.co_victim_of.is_none() || victim.is_group_kill;
        if !is_counted && !self.reported.contains(&victim.kill.victim) {
            return true;
        }
        self.settle_counted(victim.kill.victim, at_ns)
    }

    /// Takes a counted kill from those that are to be inferred. Returns whether it is unreported.
    fn settle_counted(&mut self, victim: ProcessKey, at_ns: u64) -> bool {
        if self.reported.contains(&victim) {
            self.inference.settle_reported(at_ns);
            return false;
        }
        self.inference.settle(at_ns)
    }

    fn attribute_delivered(&mut self, first: ProcessKey, victims: Vec<Victim>, now_ns: u64) {
        let (firsts, members): (Vec<Victim>, Vec<Victim>) =
            victims.into_iter().partition(|victim| victim.kill.victim == first);
        let until_ns = now_ns.saturating_add(MEMBERS_KEPT_NS);
        let deferred = |victim| DeferredReport { victim: Box::new(victim), until_ns, not_before_ns: now_ns };
        self.co_victims.extend(members.into_iter().map(deferred));
        for victim in firsts {
            self.attributed(Attribution::Oom(Box::new(victim)), now_ns);
        }
        self.release_co_victims(now_ns);
    }

    /// Adds what the own history does not know: its snapshots may have missed a process, or a parent that is gone.
    fn merge_delivered(&mut self, processes: &[DeliveredProcess], at_ns: u64) {
        for process in processes {
            let key = process.exec.process;
            let is_new = self.history.find(key).is_none();
            let started = |what| TraceEvent { at_boot_ns: key.start_boot_ns(), what };
            self.history.fold_event(&started(Trace::Fork(Fork { child: key, parent_pid: process.parent_pid })));
            if is_new {
                self.history.fold_event(&started(Trace::Exec(process.exec.clone())));
            }
            if process.is_gone {
                let exit = Trace::Exit(ProcessExit { process: key });
                self.history.fold_event(&TraceEvent { at_boot_ns: at_ns, what: exit });
            }
        }
    }
}
