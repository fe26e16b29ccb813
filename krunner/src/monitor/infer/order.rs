//! Who died first, where somebody kills the rest.
//!
//! A supervisor that loses one of its workers may end the others with SIGKILL within a millisecond. Then more were seen to be
//! killed than the kernel counted, and having been killed says nothing any more: the victim is the one of those about as
//! large that left first. One that is gone at a look left before one that is still seen to die there.

use super::{Case, Suspect, is_killed};

/// One that left later is worth this part.
const LATER: u64 = 8;

/// When somebody was seen to leave, in nanoseconds since boot, and whether it was still there, dying.
type Leave = (u64, bool);

impl Case {
    /// What each suspect is worth in this case; `None` where it cannot be the victim.
    pub(super) fn likelihoods(&self, suspects: &[&Suspect]) -> Vec<Option<u64>> {
        let eligible: Vec<Option<&Suspect>> =
            suspects.iter().map(|suspect| self.may_be(suspect).then_some(*suspect)).collect();
        let first = self.first_to_leave(&eligible);
        let is_later = |suspect: &Suspect| first.is_some_and(|first| leave(suspect) > first);
        let worth = |suspect: &Suspect| self.likelihood(suspect) / if is_later(suspect) { LATER } else { 1 };
        eligible.into_iter().map(|suspect| suspect.map(worth)).collect()
    }

    /// When the first of those about as large as the largest left, if more were killed than were counted.
    fn first_to_leave(&self, eligible: &[Option<&Suspect>]) -> Option<Leave> {
        let killed = eligible.iter().flatten().filter(|suspect| is_killed(suspect));
        let largest = killed.clone().map(|suspect| suspect.known.rss_bytes).max()?;
        if killed.count() <= self.most() {
            return None;
        }
        let is_as_large = |suspect: &&&Suspect| suspect.known.rss_bytes >= largest / 2;
        eligible.iter().flatten().filter(is_as_large).map(|suspect| leave(suspect)).min()
    }
}

fn leave(suspect: &Suspect) -> Leave {
    let gone = suspect.known.gone_at_boot_ns.map(|at_ns| (at_ns, false));
    let dying = suspect.end_ns.map(|at_ns| (at_ns, true));
    gone.into_iter().chain(dying).min().unwrap_or((u64::MAX, true))
}
