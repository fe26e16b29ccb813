//! From what happens to what is told. Pure but for one question that it is handed: no I/O, no clock of its own.
//!
//! ```text
//!  TraceEvent ─▶ Joiner ─▶ victim ─▶ Storm ──▶ a moment's wait for a fresh look ─▶ Report
//!      └───────▶ History ◀── Snapshot ──────────────────┘
//!  counter grew (no tracer) ─▶ Inference: who left since, how large ─▶ Report, inferred
//!  the agent says so (no tracer, no counter) ─▶ the same ─▶ Report, possible
//! ```
//!
//! A kill asks for a look at `/proc` at once, so that the report tells who else was big at that moment.
//! The look runs beside the victim's death and mostly wins; a report never waits longer than
//! [`LOOK_PATIENCE_NS`] for it, and goes with the last regular snapshot instead.
//!
//! While the engine is *held*, because the limit that was hit is our own and the victim's memory is not back, it asks for
//! nothing and reports nothing: see `cgroup::charge`.

mod barrier;
mod order;
mod others;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime};

use super::attribution::sigkill::{RecentKills, SigkillCause};
use super::cgroup::CgroupFacts;
use super::cgroup::counter::Count;
use super::event::{Actor, Death, Kill, KillSource, ProcessKey, Trace, TraceEvent};
use super::history::History;
use super::infer::{Accused, Inference};
use super::join::{Joiner, Verdict, Victim};
use super::process::{End, Glance, Snapshot};
use super::report::{Circumstances, Report, mib_or_unknown, victim_rss};
use super::storm::{Storm, Suppressed};
use order::group_patience_ns;
pub(super) use others::Present;
use others::largest_spared;

const MS: u64 = 1_000_000;

/// How long a report waits for the look that its kill asked for.
const LOOK_PATIENCE_NS: u64 = 4 * MS;

/// A snapshot of this age is as good as a fresh one: the sampler would not look again sooner.
const FRESH_NS: u64 = 50 * MS;

/// Looks that took longer are not asked for: the report would go without them anyway.
const QUICK_LOOK: Duration = Duration::from_millis(4);

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
    /// The limit is reached, and the kernel may not kill here.
    Stuck,
    /// Kills were counted some time ago; which processes they were is not known yet.
    Unnamed {
        /// How many.
        kills: u64,
    },
    /// Kills were counted of processes that nobody can name.
    Unattributed {
        /// How many.
        kills: u64,
        /// Why not, where `/proc` does not show all processes; a fragment of a sentence.
        reason: Option<String>,
    },
}

/// A victim whose report waits for a fresh look.
#[derive(Debug)]
struct Waiting {
    victim: Box<Victim>,
    until_ns: u64,
    /// Not before, whatever comes.
    not_before_ns: u64,
}

/// The monitor's mind.
pub(super) struct Engine {
    present: Box<dyn Present>,
    joiner: Joiner,
    history: History,
    storm: Storm,
    waiting: VecDeque<Waiting>,
    /// Co-victims whose first victim is not told yet, in the order of their verdicts.
    company: Vec<Waiting>,
    figures: BTreeMap<ProcessKey, CgroupFacts>,
    /// When a look was last asked for that has not come yet.
    look_asked_ns: Option<u64>,
    look_is_quick: bool,
    /// When the last snapshot began.
    last_snapshot_ns: Option<u64>,
    booted_at: SystemTime,
    lost_records: u64,
    /// Without a tracer: kills that are known of, but not whose.
    inference: Inference,
    /// Without a tracer: the cgroup counts kills.
    is_counted: bool,
    /// Who was told of, by whichever way: nobody is told of twice.
    told: VecDeque<ProcessKey>,
    /// Why processes got SIGKILL, for those who waited for them.
    recent: RecentKills,
    /// Without a tracer: when kills were counted last.
    counted_ns: Option<u64>,
    /// Why kills may have no name.
    why_unattributed: Option<String>,
    is_held: bool,
    /// Killed while held, each in the cgroup of that id: what else is to be known of them is looked up afterwards.
    held_victims: Vec<(ProcessKey, Option<u64>)>,
    notices: Vec<Notice>,
}

impl Engine {
    /// An engine that knows nothing; `booted_at` is the time of day at which the clock of events was 0.
    #[must_use]
    pub(super) fn new(booted_at: SystemTime, present: Box<dyn Present>) -> Self {
        Self {
            present,
            joiner: Joiner::new(),
            history: History::new(),
            storm: Storm::new(),
            waiting: VecDeque::new(),
            company: Vec::new(),
            figures: BTreeMap::new(),
            look_asked_ns: None,
            look_is_quick: true,
            last_snapshot_ns: None,
            booted_at,
            lost_records: 0,
            inference: Inference::default(),
            is_counted: false,
            told: VecDeque::new(),
            recent: RecentKills::default(),
            counted_ns: None,
            why_unattributed: None,
            is_held: false,
            held_victims: Vec::new(),
            notices: Vec::new(),
        }
    }

    /// The time of day at which the clock of events was 0, by the wall clock of now: that may be set at any time.
    pub(super) fn set_booted_at(&mut self, booted_at: SystemTime) {
        self.booted_at = booted_at;
    }

    /// `/proc` does not show all processes. Of those that it shows none is named where a hidden one may be meant.
    pub(super) fn view_is_partial(&mut self, reason: String) {
        self.inference.view_is_partial();
        self.why_unattributed = Some(reason);
    }

    /// Takes in what a tracer saw. `figures` are those of the victim's cgroup, for a [`KillSource::Kernel`]
    /// kill. Returns whether `/proc` should be looked at now.
    #[must_use]
    pub(super) fn trace(&mut self, event: &TraceEvent, figures: Option<CgroupFacts>, now_ns: u64) -> bool {
        self.history.fold_event(event);
        let mut look = false;
        match &event.what {
            Trace::Lost { records, .. } => {
                self.lost_records += records;
                self.notices.push(Notice::Lost { records: *records });
            }
            Trace::Kill(kill) if is_of_interest(kill) => {
                if let Some(figures) = figures {
                    self.keep_figures(kill.victim, figures);
                }
                if self.is_held {
                    self.hold_victim(kill.victim, kill.cgroup_id);
                } else {
                    self.note_ancestors(kill.victim, event.at_boot_ns, now_ns);
                    look = self.wants_look(now_ns);
                }
            }
            _ => {}
        }
        let verdict = self.joiner.feed(event);
        self.judged_all(verdict.into_iter().collect(), now_ns);
        look
    }

    /// The victim of a kill that was taken in just now is one of a group (`memory.oom.group`).
    pub(super) fn killed_with_group(&mut self, victim: ProcessKey) {
        self.joiner.killed_with_group(victim);
    }

    /// Takes in a look at `/proc`.
    pub(super) fn snapshot(&mut self, snapshot: &Snapshot, now_ns: u64) {
        self.history.fold_snapshot(snapshot);
        self.look_is_quick = snapshot.cost.wall <= QUICK_LOOK;
        self.last_snapshot_ns = Some(snapshot.at_boot_ns);
        if self.look_asked_ns.is_some_and(|asked_ns| snapshot.at_boot_ns >= asked_ns) {
            self.look_asked_ns = None;
            self.look_came(now_ns);
        }
        self.inference.looked(snapshot.at_boot_ns);
        self.infer(now_ns);
    }

    /// Takes in a look at a few processes.
    pub(super) fn glance(&mut self, glance: &Glance, now_ns: u64) {
        self.history.fold_glance(glance);
        if glance.is_listed {
            self.inference.listed(glance.at_boot_ns);
        }
        self.infer(now_ns);
    }

    /// Without a tracer: takes in what our cgroup has counted since that time. Returns whether to look at `/proc`
    /// now, because somebody was killed.
    #[must_use]
    pub(super) fn counted(&mut self, count: Count) -> bool {
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

    /// Whether the cgroup counts kills.
    #[must_use]
    pub(super) fn is_counted(&self) -> bool {
        self.is_counted
    }

    /// Without a tracer: the agent says that there was a kill. Returns whether to look at `/proc` now. Where
    /// the cgroup counts kills, its word is enough.
    #[must_use]
    pub(super) fn told_of_kill(&mut self, now_ns: u64) -> bool {
        if !self.is_counted {
            self.inference.told_of_kill(now_ns);
        }
        !self.is_counted
    }

    /// Somebody waits for a process that has ended.
    pub(super) fn died(&mut self, death: &Death, now_ns: u64) {
        self.history.ended(death);
        self.infer(now_ns);
    }

    /// The same, where nobody could look whose process that was.
    pub(super) fn died_unseen(&mut self, pid: u32, end: End, now_ns: u64) {
        if let Some(process) = self.history.holder_of(pid, now_ns) {
            self.history.ended_unseen(process, end, now_ns);
            self.infer(now_ns);
        }
    }

    /// So many kills were counted whose records the tracer dropped. Who left meanwhile says little of whom they hit: a
    /// flood of processes made the tracer drop them.
    pub(super) fn missed(&mut self, kills: u64) {
        if kills > 0 {
            self.notices.push(Notice::Unattributed { kills, reason: None });
        }
    }

    /// Our cgroup has reached its limit, and the kernel may not kill in it.
    pub(super) fn stuck(&mut self) {
        self.notices.push(Notice::Stuck);
    }

    /// Lets time pass.
    pub(super) fn tick(&mut self, now_ns: u64) {
        let verdicts = self.joiner.tick(now_ns);
        self.judged_all(verdicts, now_ns);
        self.end_company(now_ns, now_ns);
        if !self.is_held {
            self.release(now_ns);
        }
        self.infer(now_ns);
        let unnamed = self.inference.announce(now_ns);
        if unnamed > 0 {
            self.notices.push(Notice::Unnamed { kills: unnamed });
        }
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
        !self.waiting.is_empty()
            || !self.company.is_empty()
            || self.joiner.is_busy(now_ns)
            || self.inference.is_busy(now_ns)
    }

    fn wants_look(&mut self, now_ns: u64) -> bool {
        let fresh = self.last_snapshot_ns.is_some_and(|at_ns| now_ns.saturating_sub(at_ns) <= FRESH_NS);
        let wants = self.look_is_quick && !fresh && self.look_asked_ns.is_none();
        if wants {
            self.look_asked_ns = Some(now_ns);
        }
        wants
    }

    fn judged(&mut self, verdict: Verdict, now_ns: u64) {
        let victim = match verdict {
            Verdict::Oom(victim) => victim,
            Verdict::Killed { process, name, by } => {
                let victim = Actor { pid: process.pid, name };
                return self.recent.add(process, now_ns, SigkillCause::Sent { victim, by });
            }
        };
        if !self.first_time(victim.kill.victim) {
            return;
        }
        self.remember_victim(&victim, now_ns);
        if !self.storm.admit(now_ns, &victim.kill.name) {
            self.figures.remove(&victim.kill.victim);
            return;
        }
        let not_before_ns = now_ns + group_patience_ns(&victim);
        // Whoever was killed first is told of first.
        if self.is_held || self.look_asked_ns.is_some() || !self.waiting.is_empty() || not_before_ns > now_ns {
            let until_ns = not_before_ns.max(now_ns + LOOK_PATIENCE_NS);
            self.waiting.push_back(Waiting { victim, until_ns, not_before_ns });
        } else {
            self.report(&victim);
        }
    }

    /// The look has come that they waited for.
    fn look_came(&mut self, now_ns: u64) {
        for waiting in &mut self.waiting {
            waiting.until_ns = waiting.not_before_ns.max(now_ns);
        }
        self.release(now_ns);
    }

    /// Reports those whose patience ends by then, in order.
    fn release(&mut self, by_ns: u64) {
        while let Some(waiting) = self.waiting.pop_front_if(|waiting| waiting.until_ns <= by_ns) {
            self.report(&waiting.victim);
        }
    }

    fn report(&mut self, victim: &Victim) {
        let members = self.take_members(victim.kill.victim);
        let keys: Vec<ProcessKey> = members.iter().map(|member| member.kill.victim).collect();
        let largest = self.look_for_others(victim.kill.victim, &keys, victim.killed_at_boot_ns);
        let circumstances = Circumstances {
            time: self.time_of_day(victim.killed_at_boot_ns),
            cgroup: self.figures.remove(&victim.kill.victim),
            lost_records: self.lost_records,
            largest,
        };
        self.notices.push(Notice::Report(Box::new(Report::of_victim(victim, &members, &self.history, circumstances))));
    }

    /// Names who must have been killed, as far as that can be told by now.
    fn infer(&mut self, now_ns: u64) {
        if !self.inference.is_open() {
            return;
        }
        let mut suspects = self.history.suspects(self.inference.since_ns());
        suspects.retain(|suspect| !self.told.contains(&suspect.known.key));
        let spared_bytes = |cgroup: Option<&CgroupFacts>| largest_spared(&self.history, &*self.present, cgroup, now_ns);
        let (accused, unnamed) = self.inference.judge(suspects, spared_bytes, now_ns);
        for accused in accused {
            self.accuse(accused, now_ns);
        }
        if unnamed > 0 {
            let reason = self.why_unattributed.clone();
            self.notices.push(Notice::Unattributed { kills: unnamed, reason });
        }
    }

    fn accuse(&mut self, accused: Accused, now_ns: u64) {
        let process = &accused.suspect.known;
        if !self.first_time(process.key) || !self.storm.admit(now_ns, &process.name) {
            return;
        }
        let (key, known_ns) = (process.key, accused.known_ns);
        self.remember_oom(key, &process.name, process.rss_bytes(), now_ns);
        let largest = self.look_for_others(key, &[], known_ns);
        let time = self.time_of_day(known_ns);
        let circumstances = Circumstances { time, cgroup: accused.cgroup, lost_records: 0, largest };
        let report = Report::of_suspect(accused.confidence, &accused.suspect, known_ns, &self.history, circumstances);
        self.notices.push(Notice::Report(Box::new(report)));
    }

    fn keep_figures(&mut self, victim: ProcessKey, figures: CgroupFacts) {
        if self.figures.len() >= MAX_FIGURES {
            self.figures.pop_first();
        }
        self.figures.insert(victim, figures);
    }

    fn remember_victim(&mut self, victim: &Victim, at_ns: u64) {
        let (process, kill) = (victim.kill.victim, &victim.kill);
        let rss_bytes = victim_rss(&kill.memory, self.history.find(process).as_ref());
        self.remember_oom(process, &kill.name, rss_bytes, at_ns);
    }

    fn remember_oom(&mut self, process: ProcessKey, name: &str, rss_bytes: Option<u64>, now_ns: u64) {
        let victim = format!("{} ({}, rss {})", process.pid, name.escape_debug(), mib_or_unknown(rss_bytes));
        self.recent.add(process, now_ns, SigkillCause::Oom { victim });
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
