//! From what happens to what is told. Pure but for one question that it is handed: no I/O, no clock of its own.
//!
//! ```text
//!  TraceEvent ─▶ Joiner ─▶ victim ─▶ Storm ──▶ a moment's wait for a fresh look ─▶ Report
//!      └───────▶ History ◀── Snapshot ──────────────────┘
//!  counter grew (no tracer) ─▶ who left since the last snapshot ─▶ Report, inferred
//!  the agent says so (no tracer, no counter) ─▶ the same ─▶ Report, possible
//! ```
//!
//! A kill asks for a look at `/proc` at once, so that the report tells who else was big at that moment.
//! The look runs beside the victim's death and mostly wins; a report never waits longer than
//! [`LOOK_PATIENCE_NS`] for it, and goes with the last regular snapshot instead.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime};

use super::cgroup::CgroupFacts;
use super::event::{Kill, KillSource, ProcessKey, Trace, TraceEvent};
use super::history::{History, Known};
use super::join::{Confidence, Joiner, Verdict, Victim};
use super::process::Snapshot;
use super::report::{Circumstances, Report};
use super::storm::{Storm, Suppressed};

const MS: u64 = 1_000_000;

/// How long a report waits for the look that its kill asked for.
const LOOK_PATIENCE_NS: u64 = 4 * MS;

/// A snapshot of this age is as good as a fresh one: the sampler would not look again sooner.
const FRESH_NS: u64 = 50 * MS;

/// Looks that took longer are not asked for: the report would go without them anyway.
const QUICK_LOOK: Duration = Duration::from_millis(4);

/// A kill is counted at once, and the count is read four times a second.
const COUNTER_DELAY_NS: u64 = 300 * MS;

/// The container engine's word may take this long to come by way of the agent.
const AGENT_DELAY_NS: u64 = 5_000 * MS;

/// Snapshots whose times are remembered: those of [`AGENT_DELAY_NS`], and some that were asked for.
const MAX_SNAPSHOTS: usize = 16;

/// Cgroup figures kept for kills that are not through; a storm has no use for more.
const MAX_FIGURES: usize = 256;

/// Processes remembered as told of. What comes by two ways comes within seconds.
const MAX_TOLD: usize = 1024;

/// What the monitor tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// A process was killed for memory.
    Report(Box<Report>),
    /// More were than can be told one by one.
    Suppressed(Suppressed),
    /// The tracer had no room for so many records; a kill may be among them.
    Lost {
        /// How many.
        records: u64,
    },
}

/// A victim whose report waits for a fresh look.
#[derive(Debug)]
struct Waiting {
    victim: Box<Victim>,
    until_ns: u64,
}

/// Tells whether a process is there right now.
pub(super) type IsThere = Box<dyn Fn(ProcessKey) -> bool + Send + Sync>;

/// The monitor's mind.
pub(super) struct Engine {
    is_there: IsThere,
    joiner: Joiner,
    history: History,
    storm: Storm,
    waiting: VecDeque<Waiting>,
    figures: BTreeMap<ProcessKey, CgroupFacts>,
    /// When a look was last asked for that has not come yet.
    look_asked_ns: Option<u64>,
    look_is_quick: bool,
    /// When the last snapshots began.
    snapshots: VecDeque<u64>,
    booted_at: SystemTime,
    lost_records: u64,
    /// Without a tracer: the cgroup's count of kills when it was last seen.
    kill_count: Option<u64>,
    /// Without a tracer: somebody said that there was a kill, and the next snapshot will show who.
    suspected: Option<Suspicion>,
    /// Who was told of, by whichever way: nobody is told of twice.
    told: VecDeque<ProcessKey>,
    notices: Vec<Notice>,
}

/// A kill that is known of, but not whose.
#[derive(Debug, Clone)]
struct Suspicion {
    confidence: Confidence,
    /// How many at most.
    victims: usize,
    /// Snapshots that began earlier may not show it yet.
    since_ns: u64,
    cgroup: Option<CgroupFacts>,
}

impl Engine {
    /// An engine that knows nothing; `booted_at` is the time of day at which the clock of events was 0.
    #[must_use]
    pub(super) fn new(booted_at: SystemTime, is_there: IsThere) -> Self {
        Self {
            is_there,
            joiner: Joiner::new(),
            history: History::new(),
            storm: Storm::new(),
            waiting: VecDeque::new(),
            figures: BTreeMap::new(),
            look_asked_ns: None,
            look_is_quick: true,
            snapshots: VecDeque::new(),
            booted_at,
            lost_records: 0,
            kill_count: None,
            suspected: None,
            told: VecDeque::new(),
            notices: Vec::new(),
        }
    }

    /// Takes in what a tracer saw. `figures` are those of the victim's cgroup, for a [`KillSource::Kernel`]
    /// kill. Returns whether `/proc` should be looked at now.
    #[must_use]
    pub(super) fn trace(&mut self, event: &TraceEvent, figures: Option<CgroupFacts>, now_ns: u64) -> bool {
        self.history.fold_event(event);
        let mut look = false;
        match &event.what {
            Trace::Lost { records } => {
                self.lost_records += records;
                self.notices.push(Notice::Lost { records: *records });
            }
            Trace::Kill(kill) if is_of_interest(kill) => {
                if let Some(figures) = figures {
                    if self.figures.len() >= MAX_FIGURES {
                        self.figures.pop_first();
                    }
                    self.figures.insert(kill.victim, figures);
                }
                look = self.wants_look(now_ns);
            }
            _ => {}
        }
        if let Some(verdict) = self.joiner.feed(event) {
            self.judged(verdict, now_ns);
        }
        look
    }

    /// Takes in a look at `/proc`.
    pub(super) fn snapshot(&mut self, snapshot: &Snapshot, now_ns: u64) {
        self.history.fold_snapshot(snapshot);
        self.look_is_quick = snapshot.cost.wall <= QUICK_LOOK;
        if self.snapshots.len() == MAX_SNAPSHOTS {
            self.snapshots.pop_front();
        }
        self.snapshots.push_back(snapshot.at_boot_ns);
        if self.look_asked_ns.is_some_and(|asked_ns| snapshot.at_boot_ns >= asked_ns) {
            self.look_asked_ns = None;
            self.release(u64::MAX);
        }
        if let Some(suspicion) = self.suspected.take_if(|suspicion| snapshot.at_boot_ns >= suspicion.since_ns) {
            self.accuse(&suspicion, now_ns);
        }
    }

    /// Without a tracer: takes in the figures of our cgroup. Returns whether to look at `/proc` now, because
    /// it counts more kills than it did.
    #[must_use]
    pub(super) fn cgroup(&mut self, figures: CgroupFacts, now_ns: u64) -> bool {
        let Some(count) = figures.oom_kill_count else { return false };
        let grown = self.kill_count.replace(count).map_or(0, |before| count.saturating_sub(before));
        let victims = usize::try_from(grown).unwrap_or(usize::MAX);
        victims > 0 && self.suspect(Confidence::Inferred, victims, now_ns, Some(figures))
    }

    /// Without a tracer: the agent says that there was a kill. Returns whether to look at `/proc` now. Where
    /// the cgroup counts kills, its word is enough.
    #[must_use]
    pub(super) fn told_of_kill(&mut self, now_ns: u64) -> bool {
        self.kill_count.is_none() && self.suspect(Confidence::Possible, 1, now_ns, None)
    }

    /// Lets time pass.
    pub(super) fn tick(&mut self, now_ns: u64) {
        for verdict in self.joiner.tick(now_ns) {
            self.judged(verdict, now_ns);
        }
        self.release(now_ns);
        if self.look_asked_ns.is_some_and(|asked_ns| now_ns.saturating_sub(asked_ns) > LOOK_PATIENCE_NS) {
            self.look_asked_ns = None;
        }
        self.notices.extend(self.storm.summary(now_ns).map(Notice::Suppressed));
    }

    /// How many processes were forgotten before their time for want of room.
    #[must_use]
    pub(super) fn forgotten(&self) -> u64 {
        self.history.evicted()
    }

    /// What is to be told since the last call, in order.
    pub(super) fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Whether something waits for a few milliseconds to pass.
    #[must_use]
    pub(super) fn is_busy(&self, now_ns: u64) -> bool {
        !self.waiting.is_empty() || self.joiner.is_busy(now_ns)
    }

    fn wants_look(&mut self, now_ns: u64) -> bool {
        let fresh = self.snapshots.back().is_some_and(|at_ns| now_ns.saturating_sub(*at_ns) <= FRESH_NS);
        let wants = self.look_is_quick && !fresh && self.look_asked_ns.is_none();
        if wants {
            self.look_asked_ns = Some(now_ns);
        }
        wants
    }

    fn judged(&mut self, verdict: Verdict, now_ns: u64) {
        let Verdict::Oom(victim) = verdict else { return };
        if !self.first_time(victim.kill.victim) {
            return;
        }
        if !self.storm.admit(now_ns, &victim.kill.name) {
            self.figures.remove(&victim.kill.victim);
            return;
        }
        if self.look_asked_ns.is_some() {
            self.waiting.push_back(Waiting { victim, until_ns: now_ns + LOOK_PATIENCE_NS });
        } else {
            self.report(&victim);
        }
    }

    /// Reports those whose patience ends by then. In order: they all wait equally long.
    fn release(&mut self, by_ns: u64) {
        while let Some(waiting) = self.waiting.pop_front_if(|waiting| waiting.until_ns <= by_ns) {
            self.report(&waiting.victim);
        }
    }

    fn report(&mut self, victim: &Victim) {
        self.look_for_ancestors(victim.kill.victim, victim.killed_at_boot_ns);
        let circumstances = Circumstances {
            time: self.time_of_day(victim.killed_at_boot_ns),
            cgroup: self.figures.remove(&victim.kill.victim),
            lost_records: self.lost_records,
        };
        self.notices.push(Notice::Report(Box::new(Report::of_victim(victim, &self.history, circumstances))));
    }

    /// A parent that ended by itself did so without a word; the snapshot may be a while ago.
    fn look_for_ancestors(&mut self, process: ProcessKey, at_ns: u64) {
        for ancestor in self.history.chain(process, u64::MAX) {
            if ancestor.gone_at_boot_ns.is_none() && !(self.is_there)(ancestor.key) {
                self.history.mark_absent(ancestor.key, at_ns);
            }
        }
    }

    fn suspect(&mut self, confidence: Confidence, victims: usize, now_ns: u64, cgroup: Option<CgroupFacts>) -> bool {
        let before = self.suspected.take().map_or(0, |before| before.victims);
        self.suspected = Some(Suspicion { confidence, victims: before + victims, since_ns: now_ns, cgroup });
        true
    }

    fn accuse(&mut self, suspicion: &Suspicion, now_ns: u64) {
        // From the last snapshot on that was taken when nobody can have been killed yet.
        let delay_ns = if suspicion.confidence == Confidence::Inferred { COUNTER_DELAY_NS } else { AGENT_DELAY_NS };
        let before_ns = suspicion.since_ns.saturating_sub(delay_ns);
        let snapshot_ns = self.snapshots.iter().rev().find(|at_ns| **at_ns <= before_ns).copied().unwrap_or(0);
        let left = self.history.gone_since(snapshot_ns).into_iter();
        let suspects: Vec<Known> =
            left.filter(|known| !self.told.contains(&known.key)).take(suspicion.victims).collect();
        for suspect in suspects {
            self.first_time(suspect.key);
            if !self.storm.admit(now_ns, &suspect.name) {
                continue;
            }
            let circumstances =
                Circumstances { time: self.time_of_day(now_ns), cgroup: suspicion.cgroup.clone(), lost_records: 0 };
            let report = Report::of_suspect(suspicion.confidence, &suspect, now_ns, &self.history, circumstances);
            self.notices.push(Notice::Report(Box::new(report)));
        }
    }

    fn first_time(&mut self, process: ProcessKey) -> bool {
        if self.told.contains(&process) {
            return false;
        }
        if self.told.len() == MAX_TOLD {
            self.told.pop_front();
        }
        self.told.push_back(process);
        true
    }

    fn time_of_day(&self, at_boot_ns: u64) -> SystemTime {
        self.booted_at + Duration::from_nanos(at_boot_ns)
    }
}

/// A SIGKILL of the kernel that ends somebody.
#[must_use]
pub(super) fn is_of_interest(kill: &Kill) -> bool {
    kill.source == KillSource::Kernel && !kill.already_pending
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
