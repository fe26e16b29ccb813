//! Who is told of first: a victim before those who were killed along with it.
//!
//! The small ones exit first, so their verdicts come before that of the victim which they name. They wait for it, and it for
//! its exit no longer than [`COMPANY_PATIENCE_NS`] from then on. No I/O.

use super::{Engine, Waiting};
use crate::monitor::event::ProcessKey;
use crate::monitor::join::Verdict;

/// A victim of some GiB takes a second to exit.
const COMPANY_PATIENCE_NS: u64 = 1_000_000_000;

impl Engine {
    /// Takes in verdicts of one moment.
    pub(super) fn judged_all(&mut self, mut verdicts: Vec<Verdict>, now_ns: u64) {
        verdicts.sort_by_key(|verdict| first_victim(verdict).is_some());
        for verdict in verdicts {
            match verdict {
                Verdict::Oom(victim) if victim.with.is_some_and(|first| self.joiner.is_open(first)) => {
                    self.company.push(Waiting { victim, until_ns: now_ns.saturating_add(COMPANY_PATIENCE_NS) });
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

    /// Tells of those whose first victim has its verdict, or gets none any more.
    fn release_company(&mut self, now_ns: u64) {
        let is_open =
            |joiner: &super::Joiner, waiting: &Waiting| waiting.victim.with.is_some_and(|first| joiner.is_open(first));
        let joiner = &self.joiner;
        let free: Vec<Waiting> = self.company.extract_if(.., |waiting| !is_open(joiner, waiting)).collect();
        for waiting in free {
            self.judged(Verdict::Oom(waiting.victim), now_ns);
        }
    }
}

/// For a co-victim: whose kill it was a part of.
fn first_victim(verdict: &Verdict) -> Option<ProcessKey> {
    match verdict {
        Verdict::Oom(victim) => victim.with,
        Verdict::Killed { .. } => None,
    }
}
