//! Correlates single events: which processes the OOM killer killed, and which only look like its victims.
//!
//! ```text
//!                 mark                exit
//!  kernel SIGKILL ────▶ victim ───────────────▶ Attribution::Oom, confirmed
//!        │ no mark, but the same sender just marked
//!        │ a process with the same memory ─ exit ─▶ Attribution::Oom, co-victim
//!        └ neither ───────────────────────────▶ (not an OOM kill: dropped)
//!  SIGKILL from a process ───────────── exit ─▶ Attribution::KilledByProcess
//!  mark without SIGKILL ────────────────────────▶ (was already exiting: dropped)
//! ```
//!
//! The kernel sends SIGKILL and marks the victim right after, from the same context. It then kills every process that maps the
//! victim's memory, without marking it. With `memory.oom.group` it repeats this for each member of the cgroup
//! (`__oom_kill_process`, `mem_cgroup_scan_tasks`, `mm/oom_kill.c`). A victim that is the init process of a PID namespace kills
//! the other processes there in its own name (`zap_pid_ns_processes`, `kernel/pid_namespace.c`). They are not victims, and their
//! memory differs.
//!
//! A further marked process is part of the kill of its sender's last victim if the cgroup is killed as a whole, which its setting
//! tells ([`Correlator::is_killed_with_group`]). Where that cannot be read: if the last victim still exists, since the kernel picks
//! no further victim while one holds its memory (`oom_evaluate_task`). Since Linux 6.16 the exit may be recorded before the mark,
//! so events are correlated in any order.
//!
//! Pure: time comes from the events and from [`Correlator::tick`]'s parameter. Bounded by [`MAX_PENDING`], [`MAX_MARKS`] and
//! [`MAX_CLOSED`].

use std::collections::{BTreeMap, VecDeque};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::monitor::model::detection::TracerKind;
use crate::monitor::model::event::{Actor, Kill, KillSource, Mark, Trace, TraceEvent};
use crate::monitor::model::process::ProcessKey;

const MS: u64 = 1_000_000;

/// How long to wait for a mark after a SIGKILL from the kernel.
const MARK_PATIENCE_NS: u64 = 5 * MS;

/// How long after a mark further kills by the same sender belong to it. The kernel walks all processes in that time.
const CO_VICTIM_WINDOW_NS: u64 = 100 * MS;

/// How far apart the events of one kill may be, except for the exit.
const CORRELATION_WINDOW_NS: u64 = 1000 * MS;

/// How long a victim may take to exit (uninterruptible sleep). It is reported without an exit after that.
const EXIT_PATIENCE_NS: u64 = 10_000 * MS;

/// Pending kills. Beyond that the oldest is dropped. A burst of kills has a few per CPU.
const MAX_PENDING: usize = 4096;

/// Recent marks that co-victims may belong to.
const MAX_MARKS: usize = 64;

/// Attributed processes, remembered so that a late or repeated event does not report them again.
const MAX_CLOSED: usize = 4096;

/// How certain it is that the OOM killer killed this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Confidence {
    /// Both the kernel's SIGKILL and the OOM mark were observed.
    Confirmed,
    /// Killed together with a victim: it shared the victim's memory, or its cgroup with `memory.oom.group`.
    CoVictim,
    /// No tracer: the cgroup counted an OOM kill and this process had disappeared by then.
    Inferred,
    /// No tracer and no counter: the agent reported an OOM kill and this process had disappeared.
    Possible,
}

/// A process that the OOM killer killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Victim {
    /// The tracer that saw the kill.
    pub tracer: TracerKind,
    /// The SIGKILL, with the victim's name and memory.
    pub kill: Kill,
    /// How certain the attribution is.
    pub confidence: Confidence,
    /// For a co-victim: the first victim of the same kill.
    pub co_victim_of: Option<ProcessKey>,
    /// Whether `memory.oom.group` applies: the whole cgroup is killed.
    pub is_group_kill: bool,
    /// The process whose allocation failed, if visible.
    pub trigger: Option<Actor>,
    /// When SIGKILL was sent, in nanoseconds since boot.
    pub killed_at_boot_ns: u64,
    /// When the victim exited; `None` if it did not exit for a long time.
    pub exited_at_boot_ns: Option<u64>,
}

/// Why a process received SIGKILL, as derived from its events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Attribution {
    /// The OOM killer killed it.
    Oom(Box<Victim>),
    /// Another process killed it: exit code 137, but not by the kernel's OOM killer.
    KilledByProcess(Box<KilledByProcess>),
}

/// A process that another process killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KilledByProcess {
    /// The SIGKILL that ended it.
    pub kill: Kill,
    /// When SIGKILL was sent, in nanoseconds since boot.
    pub killed_at_boot_ns: u64,
    /// When the process exited, in nanoseconds since boot.
    pub exited_at_boot_ns: u64,
}

impl Attribution {
    fn into_victim(self) -> Option<Victim> {
        match self {
            Self::Oom(victim) => Some(*victim),
            Self::KilledByProcess(_) => None,
        }
    }
}

/// The events of one process so far.
#[derive(Debug, Default)]
struct PendingKill {
    opened_ns: u64,
    kill: Option<(u64, Kill)>,
    mark: Option<Mark>,
    group: Option<KillGroup>,
    /// Whether `memory.oom.group` applies to its cgroup; `None` if that is unknown.
    is_group_kill: Option<bool>,
    /// A SIGKILL from the kernel that arrived while another one was pending.
    late_kill: Option<(u64, Kill)>,
    user_kill: Option<(u64, Kill)>,
    exit_ns: Option<u64>,
}

/// The kill that a SIGKILL may be part of.
#[derive(Debug, Clone, Copy)]
struct KillGroup {
    first: ProcessKey,
    /// The first victim had not exited when the same process sent this SIGKILL.
    first_was_alive: bool,
    /// Both map the same memory. Without a mark, only this makes a victim.
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

/// Correlates events and attributes kills.
#[derive(Debug, Default)]
pub(crate) struct Correlator {
    /// Boxed: a map allocates for 11 entries at once (9 KiB here), and its first entry comes when memory has run out. New pages
    /// of the heap would be charged then, and the process that asks for them may be killed next.
    pending_kills: BTreeMap<ProcessKey, Box<PendingKill>>,
    marks: VecDeque<RecentMark>,
    closed: VecDeque<ProcessKey>,
}

impl Correlator {
    /// Creates a correlator without events.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds an event. Returns the attribution that it completes.
    pub(crate) fn feed(&mut self, event: &TraceEvent) -> Option<Attribution> {
        let at_ns = event.at_boot_ns;
        let process = match &event.what {
            Trace::Kill(kill) if !kill.already_pending => {
                self.kill(kill, at_ns)?;
                kill.victim
            }
            Trace::Kill(kill) if kill.source == KillSource::Kernel => {
                self.pending(kill.victim, at_ns)?.late_kill = Some((at_ns, kill.clone()));
                return None;
            }
            Trace::Mark(mark) => {
                self.pending(mark.victim, at_ns)?.mark = Some(mark.clone());
                self.find_group_of_marked(mark, at_ns);
                self.remember_mark(mark.victim, mark.trigger.as_ref(), at_ns);
                mark.victim
            }
            Trace::Exit(exit) => {
                self.pending(exit.process, at_ns)?.exit_ns = Some(at_ns);
                self.marks.iter_mut().filter(|mark| mark.victim == exit.process).for_each(|mark| mark.exited = true);
                exit.process
            }
            Trace::Kill(_) | Trace::Fork(_) | Trace::Exec(_) | Trace::CgroupMade(_) | Trace::Lost { .. } => {
                return None;
            }
        };
        self.close(process, at_ns)
    }

    /// Notes whether `memory.oom.group` applies to the cgroup of a process that was just killed. If so, processes that the same
    /// sender marks next belong to the same kill, even if the first victim has exited by then; if not, none does.
    pub(crate) fn is_killed_with_group(&mut self, process: ProcessKey, is_group: bool) {
        if let Some(pending) = self.pending_kills.get_mut(&process) {
            pending.is_group_kill = Some(is_group);
        }
    }

    /// Closes kills that waited long enough and drops those that led to nothing.
    pub(crate) fn tick(&mut self, now_ns: u64) -> Vec<Attribution> {
        self.marks.retain(|mark| now_ns.saturating_sub(mark.at_ns) <= CORRELATION_WINDOW_NS);
        let open: Vec<ProcessKey> = self.pending_kills.keys().copied().collect();
        let attributions = open.into_iter().filter_map(|process| self.close(process, now_ns)).collect();
        self.pending_kills.retain(|_, pending| !pending.is_stale(now_ns));
        attributions
    }

    /// Whether the next few milliseconds may complete an attribution.
    #[must_use]
    pub(crate) fn is_busy(&self, now_ns: u64) -> bool {
        self.pending_kills.values().any(|pending| now_ns.saturating_sub(pending.opened_ns) <= 2 * MARK_PATIENCE_NS)
    }

    /// Whether an OOM kill, certain or possible, is not attributed yet.
    #[must_use]
    pub(crate) fn has_pending_victim(&self, now_ns: u64) -> bool {
        self.pending_kills.values().any(|pending| pending.is_pending_victim(now_ns))
    }

    /// Attributes all marked victims now, without waiting for their exits.
    pub(crate) fn close_marked(&mut self) -> Vec<Attribution> {
        let is_victim = |pending: &PendingKill| pending.kill.is_some() && pending.is_victim();
        let victims: Vec<ProcessKey> =
            self.pending_kills.iter().filter(|(_, pending)| is_victim(pending)).map(|(process, _)| *process).collect();
        victims.into_iter().filter_map(|process| self.close_now(process)).collect()
    }

    /// Attributes the marked victims that were killed before this time, without waiting longer for their exits.
    pub(crate) fn close_marked_before(&mut self, before_ns: u64) -> Vec<Attribution> {
        let is_due = |pending: &PendingKill| {
            pending.kill.as_ref().is_some_and(|(killed_ns, _)| *killed_ns <= before_ns) && pending.is_victim()
        };
        let victims: Vec<ProcessKey> =
            self.pending_kills.iter().filter(|(_, pending)| is_due(pending)).map(|(process, _)| *process).collect();
        victims.into_iter().filter_map(|process| self.close_now(process)).collect()
    }

    /// Whether this process may still be attributed.
    #[must_use]
    pub(crate) fn is_open(&self, process: ProcessKey) -> bool {
        self.pending_kills.contains_key(&process)
    }

    /// Whether this process is known to be a victim and may still be attributed.
    #[must_use]
    pub(crate) fn is_victim(&self, process: ProcessKey) -> bool {
        self.pending_kills.get(&process).is_some_and(|pending| pending.is_victim())
    }

    /// Attributes a marked victim now, without waiting for its exit.
    pub(crate) fn close_victim(&mut self, process: ProcessKey) -> Option<Attribution> {
        let pending = self.pending_kills.get(&process)?;
        if pending.kill.is_some() && pending.is_victim() { self.close_now(process) } else { None }
    }

    /// Closes all co-victims of this victim, exited or not.
    pub(crate) fn close_co_victims(&mut self, first: ProcessKey) -> Vec<Victim> {
        let is_member = |pending: &PendingKill| {
            pending.kill.is_some() && pending.is_victim() && pending.first_victim() == Some(first)
        };
        let members: Vec<ProcessKey> =
            self.pending_kills.iter().filter(|(_, pending)| is_member(pending)).map(|(process, _)| *process).collect();
        let attributions = members.into_iter().filter_map(|process| self.close_now(process));
        attributions.filter_map(Attribution::into_victim).collect()
    }

    /// Whether the kernel sent SIGKILL to this process without an OOM mark so far.
    #[must_use]
    pub(crate) fn is_killed_by_kernel(&self, pid: u32) -> bool {
        self.pending_kills
            .iter()
            .any(|(process, pending)| process.pid == pid && pending.kill.is_some() && !pending.is_victim())
    }

    /// Whether the OOM killer killed the process with this PID and the attribution is pending.
    #[must_use]
    pub(crate) fn is_marked(&self, pid: u32) -> bool {
        self.pending_kills
            .iter()
            .any(|(process, pending)| process.pid == pid && pending.kill.is_some() && pending.mark.is_some())
    }

    /// The init process of a PID namespace in whose name this process received SIGKILL (`zap_pid_ns_processes`,
    /// `kernel/pid_namespace.c`). `is_oom` tells whether the OOM killer killed a PID.
    #[must_use]
    pub(crate) fn died_with_init(&self, pid: u32, is_oom: impl Fn(u32) -> bool) -> Option<Actor> {
        let ended = self.pending_kills.iter().filter(|(process, pending)| process.pid == pid && !pending.is_victim());
        let mut senders = ended.filter_map(|(_, pending)| pending.kill.as_ref()?.1.sender.clone());
        senders.find(|sender| sender.pid != pid && is_oom(sender.pid))
    }

    fn kill(&mut self, kill: &Kill, at_ns: u64) -> Option<()> {
        let group = self.group_of(kill, at_ns);
        let pending = self.pending(kill.victim, at_ns)?;
        match kill.source {
            KillSource::User => pending.user_kill = Some((at_ns, kill.clone())),
            // The first SIGKILL counts. Another may follow when the init process of the PID namespace dies of the same kill
            // (`zap_pid_ns_processes`); the process has no memory left by then.
            KillSource::Kernel if pending.kill.is_none() => {
                pending.kill = Some((at_ns, kill.clone()));
                pending.group = group;
            }
            KillSource::Kernel => {}
        }
        Some(())
    }

    fn group_of(&self, kill: &Kill, at_ns: u64) -> Option<KillGroup> {
        self.group_with(kill.sender.as_ref().map(|sender| sender.pid), kill, at_ns)
    }

    /// A group member may receive SIGKILL before the OOM killer reaches it: from the init process of its PID namespace, which
    /// dies of the same kill, or because its parent died (`PR_SET_PDEATHSIG`). Its mark then tells which kill it belongs to.
    fn find_group_of_marked(&mut self, mark: &Mark, at_ns: u64) {
        let Some(pending) = self.pending_kills.get(&mark.victim) else { return };
        let Some((killed_ns, kill)) =
            pending.kill.clone().filter(|_| pending.group.is_none()).or(pending.late_kill.clone())
        else {
            return;
        };
        let group = self.group_with(mark.trigger.as_ref().map(|actor| actor.pid), &kill, at_ns);
        if let Some(pending) = self.pending_kills.get_mut(&mark.victim)
            && pending.group.is_none()
            && group.is_some()
        {
            pending.group = group;
            pending.kill.get_or_insert((killed_ns, kill));
        }
    }

    fn group_with(&self, sender_pid: Option<u32>, kill: &Kill, at_ns: u64) -> Option<KillGroup> {
        let same_kill = |mark: &&RecentMark| {
            mark.sender_pid == sender_pid
                && mark.victim != kill.victim
                && at_ns.saturating_sub(mark.at_ns) <= CO_VICTIM_WINDOW_NS
        };
        let mark = self.marks.iter().rev().find(same_kill)?;
        let shares_memory = match (mark.memory_map, kill.memory_map) {
            // Unknown. A process that the victim itself kills more likely died with its PID namespace.
            (0, _) | (_, 0) => sender_pid != Some(mark.victim.pid),
            (one, other) => one == other,
        };
        // Two senders that we do not see may be two processes.
        let first_was_alive = sender_pid.is_some() && !mark.exited;
        Some(KillGroup { first: mark.victim, first_was_alive, shares_memory })
    }

    /// Remembers a mark. All marks of one kill are kept as that of its first victim.
    fn remember_mark(&mut self, victim: ProcessKey, trigger: Option<&Actor>, at_ns: u64) {
        let pending = self.pending_kills.get(&victim);
        if let Some(first) = pending.and_then(|pending| pending.marked_as_part_of()) {
            // Killing a large group takes a while: the kernel logs each member to the console.
            self.marks.iter_mut().filter(|mark| mark.victim == first).for_each(|mark| mark.at_ns = at_ns);
            return;
        }
        let exited = pending.is_some_and(|pending| pending.exit_ns.is_some());
        let memory_map = pending.and_then(|pending| pending.kill.as_ref()).map_or(0, |(_, kill)| kill.memory_map);
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

    /// The pending kill of a process, created if needed. `None` if the process was attributed already.
    fn pending(&mut self, process: ProcessKey, at_ns: u64) -> Option<&mut PendingKill> {
        if self.closed.contains(&process) {
            return None;
        }
        if self.pending_kills.len() >= MAX_PENDING && !self.pending_kills.contains_key(&process) {
            let oldest =
                self.pending_kills.iter().min_by_key(|(_, pending)| pending.opened_ns).map(|(process, _)| *process);
            if let Some(oldest) = oldest {
                self.pending_kills.remove(&oldest);
            }
        }
        Some(
            self.pending_kills
                .entry(process)
                .or_insert_with(|| Box::new(PendingKill { opened_ns: at_ns, ..PendingKill::default() })),
        )
    }

    /// Closes the kill if it is complete.
    fn close(&mut self, process: ProcessKey, now_ns: u64) -> Option<Attribution> {
        let pending = self.pending_kills.get(&process)?;
        if pending.is_complete(now_ns) { self.close_now(process) } else { None }
    }

    fn close_now(&mut self, process: ProcessKey) -> Option<Attribution> {
        let pending = self.pending_kills.remove(&process)?;
        if self.closed.len() == MAX_CLOSED {
            self.closed.pop_front();
        }
        self.closed.push_back(process);
        pending.into_attribution()
    }
}

impl PendingKill {
    fn is_complete(&self, now_ns: u64) -> bool {
        let Some((killed_ns, _)) = &self.kill else { return self.user_kill.is_some() && self.exit_ns.is_some() };
        let age_ns = now_ns.saturating_sub(*killed_ns);
        let gone = self.exit_ns.is_some() || age_ns >= EXIT_PATIENCE_NS;
        match (&self.mark, self.group) {
            (Some(_), _) => gone,
            (None, Some(group)) => group.shares_memory && gone && age_ns >= MARK_PATIENCE_NS,
            (None, None) => false,
        }
    }

    /// The first victim of the kill that its mark belongs to.
    fn marked_as_part_of(&self) -> Option<ProcessKey> {
        self.group.filter(|group| self.is_group_kill.unwrap_or(group.first_was_alive)).map(|group| group.first)
    }

    /// The victim that it was killed with. A marked process belongs to an earlier victim only if that one still existed, or if
    /// they are killed as a group.
    fn first_victim(&self) -> Option<ProcessKey> {
        if self.mark.is_some() { self.marked_as_part_of() } else { self.group.map(|group| group.first) }
    }

    /// Whether it was marked or shares the memory of a marked process.
    fn is_victim(&self) -> bool {
        self.mark.is_some() || self.group.is_some_and(|group| group.shares_memory)
    }

    /// Whether it is a victim, or the kernel may still mark it.
    fn is_pending_victim(&self, now_ns: u64) -> bool {
        let Some((killed_ns, _)) = &self.kill else { return false };
        self.is_victim() || now_ns.saturating_sub(*killed_ns) < MARK_PATIENCE_NS
    }

    /// Whether no further event is expected.
    fn is_stale(&self, now_ns: u64) -> bool {
        let patience_ns = match (&self.kill, &self.mark, self.group, &self.user_kill) {
            (Some(_), Some(_), _, _) | (Some(_), _, Some(_), _) | (_, _, _, Some(_)) => 2 * EXIT_PATIENCE_NS,
            _ => CORRELATION_WINDOW_NS,
        };
        now_ns.saturating_sub(self.opened_ns) > patience_ns
    }

    /// `None` if the SIGKILL or the exit is missing.
    fn into_attribution(self) -> Option<Attribution> {
        let co_victim_of = self.first_victim();
        Some(match self.kill {
            None => {
                let ((killed_at_boot_ns, kill), exited_at_boot_ns) = self.user_kill.zip(self.exit_ns)?;
                Attribution::KilledByProcess(Box::new(KilledByProcess { kill, killed_at_boot_ns, exited_at_boot_ns }))
            }
            Some((killed_at_boot_ns, kill)) => Attribution::Oom(Box::new(Victim {
                tracer: TracerKind::Bpf,
                confidence: if co_victim_of.is_some() { Confidence::CoVictim } else { Confidence::Confirmed },
                co_victim_of,
                is_group_kill: self.is_group_kill == Some(true),
                trigger: self.mark.map_or_else(|| kill.sender.clone(), |mark| mark.trigger),
                kill,
                killed_at_boot_ns,
                exited_at_boot_ns: self.exit_ns,
            })),
        })
    }
}

#[cfg(test)]
#[path = "correlate_tests.rs"]
mod tests;
