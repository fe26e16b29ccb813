//! Orders candidates by their exits, for a supervisor that kills the rest.
//!
//! A supervisor that loses a worker may SIGKILL the others within a millisecond. Then more processes were killed than the kernel
//! counted, and SIGKILL is no evidence. The victim is the first to exit among those of about the same size. A process absent in a
//! scan exited before one that the same scan shows dying.

use super::{Candidate, KillBatch, is_killed};

/// Divides the score of processes that exited later.
const LATER_DIVISOR: u64 = 8;

/// When a process was observed to exit, in nanoseconds since boot, and whether it still existed then.
type ExitTime = (u64, bool);

impl KillBatch {
    /// The score of each candidate in this batch; `None` where it cannot be the victim.
    pub(super) fn likelihoods(&self, candidates: &[&Candidate]) -> Vec<Option<u64>> {
        let eligible: Vec<Option<&Candidate>> =
            candidates.iter().map(|candidate| self.may_be_victim(candidate).then_some(*candidate)).collect();
        let first = self.first_exit(&eligible);
        let is_later = |candidate: &Candidate| first.is_some_and(|first| exit_time(candidate) > first);
        let worth =
            |candidate: &Candidate| self.likelihood(candidate) / if is_later(candidate) { LATER_DIVISOR } else { 1 };
        eligible.into_iter().map(|candidate| candidate.map(worth)).collect()
    }

    /// The first exit among those about as large as the largest, if more were killed than counted.
    fn first_exit(&self, eligible: &[Option<&Candidate>]) -> Option<ExitTime> {
        let killed = eligible.iter().flatten().filter(|candidate| is_killed(candidate));
        let largest = killed.clone().map(|candidate| candidate.process.rss_bytes).max()?;
        if killed.count() <= self.max_victims() {
            return None;
        }
        let is_as_large = |candidate: &&&Candidate| candidate.process.rss_bytes >= largest / 2;
        eligible.iter().flatten().filter(is_as_large).map(|candidate| exit_time(candidate)).min()
    }
}

fn exit_time(candidate: &Candidate) -> ExitTime {
    let gone = candidate.process.gone_at_boot_ns.map(|at_ns| (at_ns, false));
    let dying = candidate.end_ns.map(|at_ns| (at_ns, true));
    gone.into_iter().chain(dying).min().unwrap_or((u64::MAX, true))
}
