//! From single events to verdicts: who was killed for memory, and who only seemed to be.
//!
//! ```text
//!                 mark                exit
//!  kernel SIGKILL ────▶ victim ───────────────▶ Verdict::Oom, confirmed
//!        │ no mark, but the same sender marked
//!        │ one with the same memory just before ─ exit ─▶ Verdict::Oom, co-victim
//!        └ neither ───────────────────────────▶ (not for memory: forgotten)
//!  SIGKILL of a process ──────────────── exit ─▶ Verdict::Killed
//!  mark without SIGKILL ────────────────────────▶ (was exiting anyway: forgotten)
//! ```
//!
//! The kernel sends SIGKILL and marks right behind it, from the same context; then it kills, without a
//! mark, whoever else has the victim's memory mapped, and with `memory.oom.group` goes through the same
//! for each other member (`__oom_kill_process`, `mem_cgroup_scan_tasks`, `mm/oom_kill.c`). A victim that is the first
//! process of a pid namespace kills the others there in its own name (`zap_pid_ns_processes`, `kernel/pid_namespace.c`):
//! they are no victims, and have other memory. It does not
//! pick another victim while one has not let go of its memory (`oom_evaluate_task`), so a marked process
//! whose sender's last victim is still there belongs to the same kill. With two processors the first of a group may be gone
//! before the last is marked, so there the group is known by its setting ([`Joiner::killed_with_group`]). Since Linux 6.16 the exit may
//! be recorded before the mark: events are joined in any order.
//!
//! Pure: the only clock is the events' own, and [`Joiner::tick`]'s parameter. Bounded by [`MAX_CASES`],
//! [`MAX_MARKS`] and [`MAX_TOLD`].

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::event::{Actor, Kill, KillSource, Mark, ProcessKey, Trace, TraceEvent};

const MS: u64 = 1_000_000;

/// How long a process killed by the kernel without a mark may still get one.
const MARK_PATIENCE_NS: u64 = 5 * MS;

/// How long after a mark its sender's other kills count to it. The kernel walks all processes meanwhile.
const CO_VICTIM_WINDOW_NS: u64 = 100 * MS;

/// How long the parts of a kill may be apart, but for its exit.
const JOIN_WINDOW_NS: u64 = 1000 * MS;

/// How long a victim may take to exit (uninterruptible sleep); then it is told without.
const EXIT_PATIENCE_NS: u64 = 10_000 * MS;

/// Open cases; beyond, the oldest is given up. A kill storm has a few for each CPU.
const MAX_CASES: usize = 4096;

/// Marks that co-victims may belong to.
const MAX_MARKS: usize = 64;

/// Processes that were told, so that a late or repeated event does not tell them again.
const MAX_TOLD: usize = 4096;

/// How sure we are that this process was killed for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// SIGKILL from the kernel and mark seen.
    Confirmed,
    /// Killed along with a victim: it shared its memory, or its cgroup with `memory.oom.group`.
    CoVictim,
    /// No tracer: the cgroup counted a kill, and this process had left by then.
    Inferred,
    /// No tracer and no counter: somebody said that there was a kill, and this process had left.
    Possible,
}

/// A process killed for memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Victim {
    /// Its last words, with name and memory.
    pub kill: Kill,
    /// How sure we are.
    pub confidence: Confidence,
    /// For a co-victim: with whom.
    pub with: Option<ProcessKey>,
    /// `memory.oom.group` is set where it was killed: others die of the same kill.
    pub is_of_group: bool,
    /// Whoever asked for the memory that was not there, if that can be seen.
    pub trigger: Option<Actor>,
    /// When the SIGKILL was sent.
    pub killed_at_boot_ns: u64,
    /// When it exited; `None` when it has not for a long time.
    pub exited_at_boot_ns: Option<u64>,
}

/// What a chain of events came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Killed for memory.
    Oom(Box<Victim>),
    /// Killed by a process: exit code 137, but no lack of memory.
    Killed {
        /// Who.
        process: ProcessKey,
        /// Its comm.
        name: String,
        /// By whom, if that can be seen.
        by: Option<Actor>,
    },
}

impl Verdict {
    fn into_victim(self) -> Option<Victim> {
        match self {
            Self::Oom(victim) => Some(*victim),
            Self::Killed { .. } => None,
        }
    }
}

/// What is known of one process so far.
#[derive(Debug, Default)]
struct Case {
    opened_ns: u64,
    kill: Option<(u64, Kill)>,
    mark: Option<Mark>,
    company: Option<Company>,
    /// `memory.oom.group` is set where it was killed.
    is_of_group: bool,
    /// The kernel's, which came when another SIGKILL was pending already.
    late_kill: Option<(u64, Kill)>,
    user_kill: Option<Kill>,
    exit_ns: Option<u64>,
}

/// The kill that a SIGKILL may be a part of.
#[derive(Debug, Clone, Copy)]
struct Company {
    /// Its first victim.
    first: ProcessKey,
    /// That one had not exited when the SIGKILL was sent.
    was_there: bool,
    /// It had the same memory mapped: without a mark, only that makes a victim.
    shares_memory: bool,
}

/// A mark that other kills may belong to.
#[derive(Debug)]
struct RecentMark {
    at_ns: u64,
    sender_pid: Option<u32>,
    /// The first victim of this kill.
    victim: ProcessKey,
    memory_map: u64,
    exited: bool,
}

/// Joins events to verdicts.
#[derive(Debug, Default)]
pub struct Joiner {
    cases: BTreeMap<ProcessKey, Case>,
    marks: VecDeque<RecentMark>,
    told: VecDeque<ProcessKey>,
    given_up: u64,
}

impl Joiner {
    /// A joiner that knows nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes an event in; returns what is certain now.
    pub fn feed(&mut self, event: &TraceEvent) -> Option<Verdict> {
        let at_ns = event.at_boot_ns;
        let process = match &event.what {
            Trace::Kill(kill) if !kill.already_pending => {
                self.kill(kill, at_ns)?;
                kill.victim
            }
            Trace::Kill(kill) if kill.source == KillSource::Kernel => {
                self.case(kill.victim, at_ns)?.late_kill = Some((at_ns, kill.clone()));
                return None;
            }
            Trace::Mark(mark) => {
                self.case(mark.victim, at_ns)?.mark = Some(mark.clone());
                self.find_company_of_marked(mark, at_ns);
                self.remember_mark(mark.victim, mark.trigger.as_ref(), at_ns);
                mark.victim
            }
            Trace::Exit(exit) => {
                self.case(exit.process, at_ns)?.exit_ns = Some(at_ns);
                self.marks.iter_mut().filter(|mark| mark.victim == exit.process).for_each(|mark| mark.exited = true);
                exit.process
            }
            Trace::Kill(_) | Trace::Fork(_) | Trace::Exec(_) | Trace::CgroupMade(_) | Trace::Lost { .. } => {
                return None;
            }
        };
        self.close(process, at_ns)
    }

    /// `memory.oom.group` is set where this process was killed just now: who is marked by the same sender next is of the same kill, even
    /// when the first victim has exited by then.
    pub fn killed_with_group(&mut self, process: ProcessKey) {
        if let Some(case) = self.cases.get_mut(&process) {
            case.is_of_group = true;
        }
    }

    /// Lets time pass: closes what has waited long enough, forgets what came to nothing.
    pub fn tick(&mut self, now_ns: u64) -> Vec<Verdict> {
        self.marks.retain(|mark| now_ns.saturating_sub(mark.at_ns) <= JOIN_WINDOW_NS);
        let open: Vec<ProcessKey> = self.cases.keys().copied().collect();
        let verdicts = open.into_iter().filter_map(|process| self.close(process, now_ns)).collect();
        self.cases.retain(|_, case| !case.is_stale(now_ns));
        verdicts
    }

    /// Whether something may come of a few milliseconds passing.
    #[must_use]
    pub fn is_busy(&self, now_ns: u64) -> bool {
        self.cases.values().any(|case| now_ns.saturating_sub(case.opened_ns) <= 2 * MARK_PATIENCE_NS)
    }

    /// Whether an OOM kill was seen whose verdict is still to come, or may have been.
    #[must_use]
    pub fn has_pending_victim(&self, now_ns: u64) -> bool {
        self.cases.values().any(|case| case.is_pending_victim(now_ns))
    }

    /// The verdicts on victims that were marked and have not exited, without waiting for that any longer.
    pub fn close_marked(&mut self) -> Vec<Verdict> {
        let is_victim = |case: &Case| case.kill.is_some() && case.is_victim();
        let victims: Vec<ProcessKey> =
            self.cases.iter().filter(|(_, case)| is_victim(case)).map(|(process, _)| *process).collect();
        victims.into_iter().filter_map(|process| self.close_now(process)).collect()
    }

    /// Whether a verdict on this process may still come.
    #[must_use]
    pub fn is_open(&self, process: ProcessKey) -> bool {
        self.cases.contains_key(&process)
    }

    /// The verdict on a victim that was marked and has not exited, without waiting for that any longer.
    pub fn close_victim(&mut self, process: ProcessKey) -> Option<Verdict> {
        let case = self.cases.get(&process)?;
        if case.kill.is_some() && case.is_victim() { self.close_now(process) } else { None }
    }

    /// Those who were killed along with this victim, exited or not.
    pub fn close_company(&mut self, first: ProcessKey) -> Vec<Victim> {
        let is_member = |case: &Case| case.kill.is_some() && case.is_victim() && case.first_victim() == Some(first);
        let members: Vec<ProcessKey> =
            self.cases.iter().filter(|(_, case)| is_member(case)).map(|(process, _)| *process).collect();
        let verdicts = members.into_iter().filter_map(|process| self.close_now(process));
        verdicts.filter_map(Verdict::into_victim).collect()
    }

    /// Whether the kernel sent SIGKILL to this process and no mark of the OOM killer has come.
    #[must_use]
    pub fn is_killed_by_kernel(&self, pid: u32) -> bool {
        self.cases.iter().any(|(process, case)| process.pid == pid && case.kill.is_some() && !case.is_victim())
    }

    /// Whether the OOM killer has killed the process of this PID, whose verdict is still to come.
    #[must_use]
    pub fn is_marked(&self, pid: u32) -> bool {
        self.cases.iter().any(|(process, case)| process.pid == pid && case.kill.is_some() && case.mark.is_some())
    }

    /// The first process of a PID namespace in whose name this process got SIGKILL (`zap_pid_ns_processes`,
    /// `kernel/pid_namespace.c`). `is_oom`: whether the process of that PID was killed for memory.
    #[must_use]
    pub fn died_with_init(&self, pid: u32, is_oom: impl Fn(u32) -> bool) -> Option<Actor> {
        let ended = self.cases.iter().filter(|(process, case)| process.pid == pid && !case.is_victim());
        let mut senders = ended.filter_map(|(_, case)| case.kill.as_ref()?.1.sender.clone());
        senders.find(|sender| sender.pid != pid && is_oom(sender.pid))
    }

    /// How many cases were given up for want of room.
    #[must_use]
    pub fn given_up(&self) -> u64 {
        self.given_up
    }

    fn kill(&mut self, kill: &Kill, at_ns: u64) -> Option<()> {
        let company = self.company_of(kill, at_ns);
        let case = self.case(kill.victim, at_ns)?;
        match kill.source {
            KillSource::User => case.user_kill = Some(kill.clone()),
            // The first one ends it. Another may follow, of a process without memory by then, when the first process of its
            // PID namespace dies of the same kill (`zap_pid_ns_processes`).
            KillSource::Kernel if case.kill.is_none() => {
                case.kill = Some((at_ns, kill.clone()));
                case.company = company;
            }
            KillSource::Kernel => {}
        }
        Some(())
    }

    fn company_of(&self, kill: &Kill, at_ns: u64) -> Option<Company> {
        self.company_with(kill.sender.as_ref().map(|sender| sender.pid), kill, at_ns)
    }

    /// A member of a group may get a SIGKILL before the OOM killer comes to it: of the first process of its PID namespace, which
    /// exits of the same kill, or because its parent did (`PR_SET_PDEATHSIG`). Then its mark says whose kill it belongs to.
    fn find_company_of_marked(&mut self, mark: &Mark, at_ns: u64) {
        let Some(case) = self.cases.get(&mark.victim) else { return };
        let Some((killed_ns, kill)) = case.kill.clone().filter(|_| case.company.is_none()).or(case.late_kill.clone())
        else {
            return;
        };
        let company = self.company_with(mark.trigger.as_ref().map(|actor| actor.pid), &kill, at_ns);
        if let Some(case) = self.cases.get_mut(&mark.victim)
            && case.company.is_none()
            && company.is_some()
        {
            case.company = company;
            case.kill.get_or_insert((killed_ns, kill));
        }
    }

    fn company_with(&self, sender_pid: Option<u32>, kill: &Kill, at_ns: u64) -> Option<Company> {
        let same_kill = |mark: &&RecentMark| {
            mark.sender_pid == sender_pid
                && mark.victim != kill.victim
                && at_ns.saturating_sub(mark.at_ns) <= CO_VICTIM_WINDOW_NS
        };
        let mark = self.marks.iter().rev().find(same_kill)?;
        let shares_memory = match (mark.memory_map, kill.memory_map) {
            // Not known: then one that the victim itself kills is more likely to end with its pid namespace.
            (0, _) | (_, 0) => sender_pid != Some(mark.victim.pid),
            (one, other) => one == other,
        };
        Some(Company { first: mark.victim, was_there: !mark.exited, shares_memory })
    }

    /// All marks of one kill are kept as that of its first victim.
    fn remember_mark(&mut self, victim: ProcessKey, trigger: Option<&Actor>, at_ns: u64) {
        let case = self.cases.get(&victim);
        if let Some(first) = case.and_then(Case::marked_with) {
            // A large group takes a while: the console is told of each member.
            self.marks.iter_mut().filter(|mark| mark.victim == first).for_each(|mark| mark.at_ns = at_ns);
            return;
        }
        let exited = case.is_some_and(|case| case.exit_ns.is_some());
        let memory_map = case.and_then(|case| case.kill.as_ref()).map_or(0, |(_, kill)| kill.memory_map);
        if self.marks.len() == MAX_MARKS {
            self.marks.pop_front();
        }
        self.marks.push_back(RecentMark {
            at_ns,
            sender_pid: trigger.map(|actor| actor.pid),
            victim,
            memory_map,
            exited,
        });
    }

    /// The case of a process, opened if need be; `None` when the process was told already.
    fn case(&mut self, process: ProcessKey, at_ns: u64) -> Option<&mut Case> {
        if self.told.contains(&process) {
            return None;
        }
        if self.cases.len() >= MAX_CASES && !self.cases.contains_key(&process) {
            let oldest = self.cases.iter().min_by_key(|(_, case)| case.opened_ns).map(|(process, _)| *process);
            self.given_up += u64::from(oldest.is_some_and(|oldest| self.cases.remove(&oldest).is_some()));
        }
        Some(self.cases.entry(process).or_insert_with(|| Case { opened_ns: at_ns, ..Case::default() }))
    }

    /// Closes a case that is complete at this time.
    fn close(&mut self, process: ProcessKey, now_ns: u64) -> Option<Verdict> {
        let case = self.cases.get(&process)?;
        if case.is_complete(now_ns) { self.close_now(process) } else { None }
    }

    fn close_now(&mut self, process: ProcessKey) -> Option<Verdict> {
        let case = self.cases.remove(&process)?;
        if self.told.len() == MAX_TOLD {
            self.told.pop_front();
        }
        self.told.push_back(process);
        Some(case.into_verdict(process))
    }
}

impl Case {
    fn is_complete(&self, now_ns: u64) -> bool {
        let Some((killed_ns, _)) = &self.kill else { return self.user_kill.is_some() && self.exit_ns.is_some() };
        let age_ns = now_ns.saturating_sub(*killed_ns);
        let gone = self.exit_ns.is_some() || age_ns >= EXIT_PATIENCE_NS;
        match (&self.mark, self.company) {
            (Some(_), _) => gone,
            (None, Some(company)) => company.shares_memory && gone && age_ns >= MARK_PATIENCE_NS,
            (None, None) => false,
        }
    }

    /// The first victim of the kill that its mark, if it has one, is a part of.
    fn marked_with(&self) -> Option<ProcessKey> {
        self.company.filter(|company| company.was_there || self.is_of_group).map(|company| company.first)
    }

    /// The victim that it was killed along with. A marked process belongs to an earlier victim only if that one was still
    /// there, or they die as a group.
    fn first_victim(&self) -> Option<ProcessKey> {
        if self.mark.is_some() { self.marked_with() } else { self.company.map(|company| company.first) }
    }

    /// Marked, or of the memory of one that was.
    fn is_victim(&self) -> bool {
        self.mark.is_some() || self.company.is_some_and(|company| company.shares_memory)
    }

    /// A victim that was not told yet, or one that the kernel killed and may still mark.
    fn is_pending_victim(&self, now_ns: u64) -> bool {
        let Some((killed_ns, _)) = &self.kill else { return false };
        self.is_victim() || now_ns.saturating_sub(*killed_ns) < MARK_PATIENCE_NS
    }

    /// Whether nothing can come of it any more.
    fn is_stale(&self, now_ns: u64) -> bool {
        let patience_ns = match (&self.kill, &self.mark, self.company, &self.user_kill) {
            (Some(_), Some(_), _, _) | (Some(_), _, Some(_), _) | (_, _, _, Some(_)) => 2 * EXIT_PATIENCE_NS,
            _ => JOIN_WINDOW_NS,
        };
        now_ns.saturating_sub(self.opened_ns) > patience_ns
    }

    fn into_verdict(self, process: ProcessKey) -> Verdict {
        let with = self.first_victim();
        match self.kill {
            None => {
                let (name, by) = self.user_kill.map(|kill| (kill.name, kill.sender)).unwrap_or_default();
                Verdict::Killed { process, name, by }
            }
            Some((killed_at_boot_ns, kill)) => Verdict::Oom(Box::new(Victim {
                confidence: if with.is_some() { Confidence::CoVictim } else { Confidence::Confirmed },
                with,
                is_of_group: self.is_of_group,
                trigger: self.mark.map_or_else(|| kill.sender.clone(), |mark| mark.trigger),
                kill,
                killed_at_boot_ns,
                exited_at_boot_ns: self.exit_ns,
            })),
        }
    }
}

#[cfg(test)]
#[path = "join_tests.rs"]
mod tests;
