//! The monitor's state machine: events in, reports out. Pure except for one [`ProcessLookup`]: no I/O, no clock.
//!
//! ```text
//!  TraceEvent ─▶ Correlator ─▶ victim ─▶ RateLimiter ─▶ short wait for a fresh scan ─▶ OomReport
//!      └───────▶ History ◀── Snapshot ───────────────────┘
//!  counter rose (no tracer) ─▶ Inference: who disappeared, how large ─▶ OomReport, inferred
//!  agent reported a kill (no tracer, no counter) ─▶ the same ─▶ OomReport, possible
//! ```
//!
//! A kill requests a scan of `/proc` at once, so that the report shows which other processes were large at that moment. The scan
//! races with the victim's exit and usually wins. A report waits for it [`SCAN_PATIENCE_NS`] at most and uses the last regular
//! snapshot otherwise.
//!
//! While the engine is *held*, because krunner's own cgroup hit its limit and the victim's memory is not freed yet, it requests
//! and reports nothing: see `sources::cgroup::charge`.

mod barrier;
mod co_victims;
mod delivered;
mod explanation;
mod facts;
mod for_others;
mod lookup;
mod memory;

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use super::correlate::{Attribution, Correlator, KilledByProcess, Victim};
use super::history::History;
use super::infer::{Attributed, Inference, UnattributedKills};
use super::kill_event::KillEvent;
use super::oom_report::{KillContext, OomReport, victim_rss};
use super::rate_limit::RateLimiter;
use super::sigkill::{RecentKills, SigkillCause};
use crate::monitor::explain::{Count, LimitHit, MemoryFacts};
use crate::monitor::model::cgroup::CgroupFacts;
use crate::monitor::model::event::{Actor, ChildExit, Kill, KillSource, Trace, TraceEvent};
use crate::monitor::model::mount::MountUsage;
use crate::monitor::model::process::{ExitKind, PartialScan, ProcessKey, Snapshot};
use crate::monitor::model::units::mib_or_unknown;
use co_victims::group_patience_ns;
pub(in crate::monitor) use delivered::{DeliveredKill, DeliveredProcess, DeliveredVictim};
use facts::{FactsNeed, KeptFacts};
pub(in crate::monitor) use lookup::ProcessLookup;
use lookup::largest_spared;
pub(in crate::monitor) use memory::ProcessSizes;

const MS: u64 = 1_000_000;

/// How long a report waits for the scan that its kill requested.
const SCAN_PATIENCE_NS: u64 = 4 * MS;

/// A snapshot of this age counts as fresh: the sampler would not scan again sooner.
const FRESH_NS: u64 = 50 * MS;

/// Slower scans are not requested, because the report would not wait for them.
const QUICK_SCAN: Duration = Duration::from_millis(4);

/// Reported processes to remember. A kill that two sources see arrives from both within seconds.
const MAX_REPORTED: usize = 1024;

/// A victim whose report waits for a fresh scan.
#[derive(Debug)]
struct DeferredReport {
    victim: Box<Victim>,
    until_ns: u64,
    /// The report is not emitted earlier, even if the scan has arrived.
    not_before_ns: u64,
}

/// The monitor's state.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own about the host")]
pub(in crate::monitor) struct MonitorEngine {
    lookup: Box<dyn ProcessLookup>,
    correlator: Correlator,
    history: History,
    rate_limiter: RateLimiter,
    deferred: VecDeque<DeferredReport>,
    /// Co-victims whose first victim is not reported yet, in order of attribution.
    co_victims: Vec<DeferredReport>,
    facts: KeptFacts,
    /// When the outstanding scan was requested.
    scan_requested_ns: Option<u64>,
    scan_is_quick: bool,
    /// Start of the last snapshot.
    last_snapshot_ns: Option<u64>,
    /// The mounts of the last snapshot that has them, and its time.
    mounts: (u64, Vec<MountUsage>),
    booted_at: SystemTime,
    lost_records: u64,
    /// Without a tracer: kills without a victim so far.
    inference: Inference,
    /// Without a tracer: the cgroup counts OOM kills.
    is_counted: bool,
    /// Processes already reported, by either path.
    reported: VecDeque<ProcessKey>,
    /// Recent SIGKILL causes, for callers that reap the processes.
    recent: RecentKills,
    /// Limits of reported victims; their co-victims died for the same limit.
    group_limits: VecDeque<(ProcessKey, LimitHit)>,
    /// Without a tracer: when the OOM kill counter last rose.
    counted_ns: Option<u64>,
    /// Why kills may stay unattributed.
    why_unattributed: Option<String>,
    memory: memory::MemoryHistory,
    /// Reports every kill at once, with its evidence, and leaves to the runners what they know better.
    traces_for_others: bool,
    is_held: bool,
    /// Victims killed while held, with their cgroup IDs. The remaining facts are looked up on resume.
    held_victims: Vec<(ProcessKey, Option<u64>)>,
    events: Vec<KillEvent>,
}

impl MonitorEngine {
    /// Creates an engine. `booted_at` is the wall-clock time of boot.
    #[must_use]
    pub(in crate::monitor) fn new(booted_at: SystemTime, lookup: Box<dyn ProcessLookup>) -> Self {
        Self {
            lookup,
            correlator: Correlator::new(),
            history: History::new(),
            rate_limiter: RateLimiter::new(),
            deferred: VecDeque::new(),
            co_victims: Vec::new(),
            facts: KeptFacts::default(),
            scan_requested_ns: None,
            scan_is_quick: true,
            last_snapshot_ns: None,
            mounts: (0, Vec::new()),
            booted_at,
            lost_records: 0,
            inference: Inference::default(),
            is_counted: false,
            reported: VecDeque::new(),
            recent: RecentKills::default(),
            group_limits: VecDeque::new(),
            counted_ns: None,
            why_unattributed: None,
            memory: memory::MemoryHistory::default(),
            traces_for_others: false,
            is_held: false,
            held_victims: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Updates the wall-clock time of boot, which changes when the clock is set.
    pub(in crate::monitor) fn set_booted_at(&mut self, booted_at: SystemTime) {
        self.booted_at = booted_at;
    }

    /// Notes that `/proc` hides processes. A visible process is then named only if no hidden one can be the victim.
    pub(in crate::monitor) fn view_is_partial(&mut self, reason: String) {
        self.inference.view_is_partial();
        self.why_unattributed = Some(reason);
    }

    /// Handles a tracer event. `facts` are the memory facts read for a kill that may be reported. Returns whether to scan
    /// `/proc` now.
    #[must_use]
    pub(in crate::monitor) fn trace(&mut self, event: &TraceEvent, facts: Option<MemoryFacts>, now_ns: u64) -> bool {
        self.history.fold_event(event);
        let mut scan = false;
        match &event.what {
            Trace::Lost { records, .. } => self.records_lost(*records),
            Trace::Kill(kill) if is_of_interest(kill) || self.is_daemon_kill_for_others(kill) => {
                if let Some(facts) = facts {
                    self.keep_facts(kill.victim, facts);
                }
                if self.is_held {
                    self.hold_victim(kill.victim, kill.cgroup_id);
                } else {
                    self.note_ancestors(kill.victim, event.at_boot_ns, now_ns);
                    scan = self.wants_scan(now_ns);
                }
            }
            _ => {}
        }
        let attribution = self.correlator.feed(event);
        self.attributed_all(attribution.into_iter().collect(), now_ns);
        scan
    }

    /// Notes whether the victim of the kill just handled belongs to a group (`memory.oom.group`).
    pub(in crate::monitor) fn is_killed_with_group(&mut self, victim: ProcessKey, is_group: bool) {
        self.correlator.is_killed_with_group(victim, is_group);
    }

    /// Handles a snapshot of `/proc`.
    pub(in crate::monitor) fn snapshot(&mut self, snapshot: &Snapshot, now_ns: u64) {
        self.history.fold_snapshot(snapshot);
        self.scan_is_quick = snapshot.cost.wall <= QUICK_SCAN;
        self.last_snapshot_ns = Some(snapshot.at_boot_ns);
        if !snapshot.mounts.is_empty() {
            self.mounts = (snapshot.at_boot_ns, snapshot.mounts.clone());
        }
        if self.scan_requested_ns.is_some_and(|asked_ns| snapshot.at_boot_ns >= asked_ns) {
            self.scan_requested_ns = None;
            self.scan_arrived(now_ns);
        }
        self.inference.scanned(snapshot.at_boot_ns);
        self.infer(now_ns);
    }

    /// Handles a partial scan.
    pub(in crate::monitor) fn partial_scan(&mut self, scan: &PartialScan, now_ns: u64) {
        self.history.fold_partial_scan(scan);
        if scan.is_listed {
            self.inference.listed(scan.at_boot_ns);
        }
        self.infer(now_ns);
    }

    /// Without a tracer: handles a reading of the cgroup's OOM kill counter. Returns whether to scan `/proc` now, because the
    /// counter rose.
    #[must_use]
    pub(in crate::monitor) fn counted(&mut self, count: Count) -> bool {
        self.is_counted = count.is_counted;
        let was_killed = !count.kills.is_empty();
        if was_killed {
            self.counted_ns = Some(count.at_boot_ns);
        }
        for kills in count.kills {
            self.inference.counted(kills, count.since_boot_ns, count.at_boot_ns);
        }
        was_killed
    }

    /// Whether the cgroup counts OOM kills.
    #[must_use]
    pub(in crate::monitor) fn is_counted(&self) -> bool {
        self.is_counted
    }

    /// Without a tracer: the agent reported an OOM kill. Returns whether to scan `/proc` now. Ignored where the cgroup counts
    /// kills.
    #[must_use]
    pub(in crate::monitor) fn agent_reported_kill(&mut self, now_ns: u64) -> bool {
        if !self.is_counted {
            self.inference.agent_reported_kill(now_ns);
        }
        !self.is_counted
    }

    /// Handles the exit of a child.
    pub(in crate::monitor) fn child_exited(&mut self, death: &ChildExit, now_ns: u64) {
        self.history.exited(death);
        self.infer(now_ns);
    }

    /// Handles the exit of a child that could not be identified.
    pub(in crate::monitor) fn child_exited_unseen(&mut self, pid: u32, end: ExitKind, now_ns: u64) {
        if let Some(process) = self.history.holder_of(pid, now_ns) {
            self.history.exited_unseen(process, end, now_ns);
            self.infer(now_ns);
        }
    }

    /// Reports OOM kills that were counted while their records were dropped. Processes that disappeared meanwhile are poor
    /// candidates: a flood of processes made the tracer drop records.
    pub(in crate::monitor) fn report_missed(&mut self, kills: u64) {
        if kills > 0 {
            self.events.push(KillEvent::Unattributed { kills, reason: None });
        }
    }

    /// Reports that krunner's cgroup reached its limit with the OOM killer disabled.
    pub(in crate::monitor) fn oom_without_kill(&mut self) {
        self.events.push(KillEvent::OomWithoutKill);
    }

    /// Advances the clock and emits reports that were waiting for their deadline.
    pub(in crate::monitor) fn tick(&mut self, now_ns: u64) {
        let mut attributions = self.correlator.tick(now_ns);
        attributions.extend(self.close_for_others(now_ns));
        self.attributed_all(attributions, now_ns);
        self.flush_co_victims(now_ns, now_ns);
        if !self.is_held {
            self.release(now_ns);
        }
        self.infer(now_ns);
        let unattributed = self.inference.announce(now_ns);
        if unattributed > 0 {
            self.events.push(KillEvent::AttributionPending { kills: unattributed });
        }
        if self.scan_requested_ns.is_some_and(|asked_ns| now_ns.saturating_sub(asked_ns) > SCAN_PATIENCE_NS) {
            self.scan_requested_ns = None;
        }
        self.events.extend(self.rate_limiter.summary(now_ns).map(KillEvent::Suppressed));
    }

    /// Number of processes evicted early because the history was full.
    #[must_use]
    pub(in crate::monitor) fn forgotten(&self) -> u64 {
        self.history.evicted()
    }

    /// Takes the events since the last call, in order.
    pub(in crate::monitor) fn take_events(&mut self) -> Vec<KillEvent> {
        std::mem::take(&mut self.events)
    }

    /// Whether the next few milliseconds may bring something.
    #[must_use]
    pub(in crate::monitor) fn is_busy(&self, now_ns: u64) -> bool {
        !self.deferred.is_empty()
            || !self.co_victims.is_empty()
            || self.correlator.is_busy(now_ns)
            || self.is_busy_for_others(now_ns)
            || self.inference.is_busy(now_ns)
    }

    fn wants_scan(&mut self, now_ns: u64) -> bool {
        let fresh = self.last_snapshot_ns.is_some_and(|at_ns| now_ns.saturating_sub(at_ns) <= FRESH_NS);
        let wants = self.scan_is_quick && !fresh && self.scan_requested_ns.is_none() && !self.traces_for_others;
        if wants {
            self.scan_requested_ns = Some(now_ns);
        }
        wants
    }

    fn attributed(&mut self, attribution: Attribution, now_ns: u64) {
        let victim = match attribution {
            Attribution::Oom(victim) => victim,
            Attribution::KilledByProcess(killed) => return self.killed_by_process(*killed, now_ns),
        };
        if !self.is_first_report(victim.kill.victim) {
            return;
        }
        self.remember_victim(&victim, now_ns);
        if !self.traces_for_others && !self.rate_limiter.admit(now_ns, &victim.kill.name) {
            self.facts.take(victim.kill.victim);
            return;
        }
        let not_before_ns = now_ns + group_patience_ns(&victim);
        // Reports keep the order of the kills.
        if self.is_held || self.scan_requested_ns.is_some() || !self.deferred.is_empty() || not_before_ns > now_ns {
            let until_ns = not_before_ns.max(now_ns + SCAN_PATIENCE_NS);
            self.deferred.push_back(DeferredReport { victim, until_ns, not_before_ns });
        } else {
            self.report(&victim);
        }
    }

    /// The scan arrived that the deferred reports waited for.
    fn scan_arrived(&mut self, now_ns: u64) {
        for deferred in &mut self.deferred {
            deferred.until_ns = deferred.not_before_ns.max(now_ns);
        }
        self.release(now_ns);
    }

    /// Emits deferred reports that are due, in order.
    fn release(&mut self, by_ns: u64) {
        while let Some(deferred) = self.deferred.pop_front_if(|deferred| deferred.until_ns <= by_ns) {
            self.report(&deferred.victim);
        }
    }

    fn report(&mut self, victim: &Victim) {
        let report = self.report_of(victim);
        self.events.push(KillEvent::Report(Box::new(report)));
    }

    fn report_of(&mut self, victim: &Victim) -> OomReport {
        let members = self.take_members(victim.kill.victim);
        let keys: Vec<ProcessKey> = members.iter().map(|member| member.kill.victim).collect();
        let facts = self.facts.take(victim.kill.victim).unwrap_or_default();
        let evidence = self.evidence(victim, &members, &facts);
        let largest = match &evidence {
            Some(_) => Vec::new(),
            None => self.largest_others(victim.kill.victim, &keys, victim.killed_at_boot_ns),
        };
        let cgroup = facts.cgroup.clone();
        let context = KillContext {
            time: self.time_of_day(victim.killed_at_boot_ns),
            explanation: self.explain_traced(facts, victim, &members),
            cgroup,
            lost_records: self.lost_records,
            largest,
        };
        OomReport::of_victim(victim, &members, &self.history, context).with_evidence(evidence)
    }

    /// Reports the processes that can be inferred as victims by now.
    fn infer(&mut self, now_ns: u64) {
        if !self.inference.is_open() {
            return;
        }
        let mut candidates = self.history.candidates(self.inference.since_ns());
        candidates.retain(|candidate| !self.reported.contains(&candidate.process.key));
        let spared_bytes = |cgroup: Option<&CgroupFacts>| largest_spared(&self.history, &*self.lookup, cgroup, now_ns);
        let (attributed, unattributed) = self.inference.attribute(candidates, spared_bytes, now_ns);
        for attributed in attributed {
            self.report_attributed(attributed, now_ns);
        }
        let UnattributedKills { kills, elsewhere } = unattributed;
        if kills > elsewhere {
            let reason = self.why_unattributed.clone();
            self.events.push(KillEvent::Unattributed { kills: kills - elsewhere, reason });
        }
        if elsewhere > 0 {
            let reason =
                "krunner node saw no kill in this container: the victim is in another one below the same limit";
            self.events.push(KillEvent::Unattributed { kills: elsewhere, reason: Some(reason.to_owned()) });
        }
    }

    fn report_attributed(&mut self, attributed: Attributed, now_ns: u64) {
        let process = &attributed.candidate.process;
        if !self.is_first_report(process.key) || !self.rate_limiter.admit(now_ns, &process.name) {
            return;
        }
        let (key, known_ns) = (process.key, attributed.known_ns);
        self.remember_oom(key, &process.name, process.rss_bytes(), now_ns);
        let largest = self.largest_others(key, &[], known_ns);
        let time = self.time_of_day(known_ns);
        let explanation = self.explain_inferred(attributed.facts.clone(), &attributed.candidate, known_ns);
        let context = KillContext { time, cgroup: attributed.facts.cgroup, explanation, lost_records: 0, largest };
        let report =
            OomReport::of_candidate(attributed.confidence, &attributed.candidate, known_ns, &self.history, context);
        self.events.push(KillEvent::Report(Box::new(report)));
    }

    fn keep_facts(&mut self, victim: ProcessKey, facts: MemoryFacts) {
        let need = |process| {
            let is_held = self.held_victims.iter().any(|(held, _)| *held == process);
            let is_certain = is_held
                || self.deferred.iter().chain(&self.co_victims).any(|report| report.victim.kill.victim == process)
                || self.correlator.is_victim(process);
            match (is_certain, self.correlator.is_open(process)) {
                (true, _) => FactsNeed::Certain,
                (false, true) => FactsNeed::Possible,
                (false, false) => FactsNeed::Gone,
            }
        };
        self.facts.keep(victim, facts, need);
    }

    fn remember_victim(&mut self, victim: &Victim, at_ns: u64) {
        let (process, kill) = (victim.kill.victim, &victim.kill);
        let rss_bytes = victim_rss(&kill.memory, self.history.find(process).as_ref());
        self.remember_oom(process, &kill.name, rss_bytes, at_ns);
    }

    fn killed_by_process(&mut self, killed: KilledByProcess, now_ns: u64) {
        if self.is_daemon_kill_for_others(&killed.kill) {
            return self.report_daemon_kill(killed);
        }
        let process = killed.kill.victim;
        let (name, by) = killed.kill.into_name_and_sender();
        let victim = Actor { pid: process.pid, name };
        self.recent.add(process, now_ns, SigkillCause::Sent { victim, by });
    }

    fn remember_oom(&mut self, process: ProcessKey, name: &str, rss_bytes: Option<u64>, now_ns: u64) {
        let victim = format!("{} ({}, rss {})", process.pid, name.escape_debug(), mib_or_unknown(rss_bytes));
        self.recent.add(process, now_ns, SigkillCause::Oom { victim });
    }

    fn is_first_report(&mut self, process: ProcessKey) -> bool {
        if self.reported.contains(&process) {
            return false;
        }
        if self.reported.len() == MAX_REPORTED {
            self.reported.pop_front();
        }
        self.reported.push_back(process);
        true
    }

    fn time_of_day(&self, at_boot_ns: u64) -> SystemTime {
        self.booted_at + Duration::from_nanos(at_boot_ns)
    }
}

/// Whether a SIGKILL came from the kernel and had an effect.
#[must_use]
pub(in crate::monitor) fn is_of_interest(kill: &Kill) -> bool {
    kill.source == KillSource::Kernel && !kill.already_pending
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
