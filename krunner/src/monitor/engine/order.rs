//! A kill with more than one victim is one report: the victim that the kernel chose, and those that it killed along with it.
//!
//! The small ones exit first, so their verdicts come before that of the victim which they name. They wait for it, and it for
//! its exit no longer than [`COMPANY_PATIENCE_NS`] from then on. With two processors the chosen one may have exited before the
//! kernel has come to the last of its group: its report waits for [`GROUP_PATIENCE_NS`]. One that is killed later still
//! has a report of its own. No I/O.

use super::{Engine, Waiting};
use crate::monitor::event::ProcessKey;
use crate::monitor::join::{Verdict, Victim};

/// The kernel takes some 10 us for each member, and writes a line to the console.
const GROUP_PATIENCE_NS: u64 = 20_000_000;

/// A victim of some GiB takes a second to exit.
const COMPANY_PATIENCE_NS: u64 = 1_000_000_000;

impl Engine {
    /// Takes in verdicts of one moment.
    pub(super) fn judged_all(&mut self, mut verdicts: Vec<Verdict>, now_ns: u64) {
        verdicts.sort_by_key(|verdict| first_victim(verdict).is_some());
        for verdict in verdicts {
            match verdict {
                Verdict::Oom(victim) if victim.with.is_some_and(|first| self.is_to_be_reported(first)) => {
                    let until_ns = now_ns.saturating_add(COMPANY_PATIENCE_NS);
                    self.company.push(Waiting { victim, until_ns, not_before_ns: now_ns });
                }
                verdict => self.judged(verdict, now_ns),
            }
        }
        self.release_company(now_ns);
    }

    /// Tells of the victims for which company has waited until then, exited or not.
    pub(super) fn end_company(&mut self, by_ns: u64, now_ns: u64) {
        let is_due = |waiting: &&Waiting| waiting.until_ns <= by_ns;
        let firsts: Vec<ProcessKey> =
            self.company.iter().filter(is_due).filter_map(|waiting| waiting.victim.with).collect();
        for first in firsts {
            if let Some(verdict) = self.joiner.close_victim(first) {
                self.judged(verdict, now_ns);
            }
        }
        let due: Vec<Waiting> = self.company.extract_if(.., |waiting| waiting.until_ns <= by_ns).collect();
        for waiting in due {
            self.judged(Verdict::Oom(waiting.victim), now_ns);
        }
        self.release_company(now_ns);
    }

    /// Reports those whose first victim has been reported, or never will be.
    fn release_company(&mut self, now_ns: u64) {
        let (free, company) = std::mem::take(&mut self.company)
            .into_iter()
            .partition(|waiting| !waiting.victim.with.is_some_and(|first| self.is_to_be_reported(first)));
        self.company = company;
        let free: Vec<Waiting> = free;
        for waiting in free {
            self.judged(Verdict::Oom(waiting.victim), now_ns);
        }
    }

    fn is_to_be_reported(&self, victim: ProcessKey) -> bool {
        self.joiner.is_open(victim) || self.waiting.iter().any(|waiting| waiting.victim.kill.victim == victim)
    }

    /// Those who were killed along with this victim, in the order of their kills. They are not reported again.
    pub(super) fn take_members(&mut self, first: ProcessKey) -> Vec<Victim> {
        let is_member = |waiting: &mut Waiting| waiting.victim.with == Some(first);
        let mut members: Vec<Victim> = self.company.extract_if(.., is_member).map(|waiting| *waiting.victim).collect();
        members.extend(self.joiner.close_company(first));
        members.retain(|member| self.first_time(member.kill.victim));
        members.sort_by_key(|member| member.killed_at_boot_ns);
        for member in &members {
            self.figures.remove(&member.kill.victim);
            self.remember_victim(member, member.killed_at_boot_ns);
        }
        members
    }
}

/// How long the report of a victim waits for those who die with it.
pub(super) fn group_patience_ns(victim: &Victim) -> u64 {
    if victim.is_of_group && victim.with.is_none() { GROUP_PATIENCE_NS } else { 0 }
}

/// For a co-victim: whose kill it was a part of.
fn first_victim(verdict: &Verdict) -> Option<ProcessKey> {
    match verdict {
        Verdict::Oom(victim) => victim.with,
        Verdict::Killed { .. } => None,
    }
}
