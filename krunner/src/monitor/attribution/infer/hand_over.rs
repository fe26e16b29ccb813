//! Matches kills that the kernel counted with kills that `krunner node` delivered, so that each is reported once. Pure.
//!
//! ```text
//!  counted, then delivered    it leaves its batch, which waits for the node a moment
//!  delivered, then counted    it was early: the count is reduced
//!  inferred, then delivered   the delivery is dropped, also if another process was inferred
//!  counted, never delivered   the victim is in another container of the same cgroup, if the node was there all the time
//! ```
//!
//! A kill belongs to a count if it lies in the interval between the two readings. The kernel counts a kill right before it sends
//! the signal whose time the node reports (`__oom_kill_process`, `mm/oom_kill.c`).

use std::collections::VecDeque;

use super::MS;

/// How far the signal may be outside the interval of its count: the kernel may be preempted between the two.
const SLACK_NS: u64 = 20 * MS;

/// Kills to remember on either side; the oldest are forgotten. A second of the fastest bursts.
const MAX_REMEMBERED: usize = 1024;

/// What is remembered of kills that only one side knows so far.
#[derive(Debug, Default)]
pub(super) struct HandOver {
    /// Times of delivered kills that no count contains yet.
    early: VecDeque<u64>,
    inferred: VecDeque<InferredKills>,
    /// While the node is connected: it delivers every kill in this container since then.
    complete_since_ns: Option<u64>,
}

/// Kills of one count that were attributed without the node.
#[derive(Debug)]
struct InferredKills {
    since_ns: u64,
    until_ns: u64,
    kills: u64,
}

/// Whether a kill at that time belongs to a count of this interval.
pub(super) fn is_within(at_ns: u64, since_ns: u64, until_ns: u64) -> bool {
    at_ns.saturating_add(SLACK_NS) >= since_ns && at_ns <= until_ns.saturating_add(SLACK_NS)
}

impl HandOver {
    /// The node delivers every kill since then; `None`: it is gone.
    pub(super) fn node_delivers(&mut self, since_ns: Option<u64>) {
        self.complete_since_ns = since_ns;
    }

    /// The node may not have delivered some of the kills up to then.
    pub(super) fn node_is_complete_from(&mut self, now_ns: u64) {
        self.complete_since_ns = self.complete_since_ns.map(|_| now_ns);
    }

    /// Whether the node is connected.
    pub(super) fn awaits_node(&self) -> bool {
        self.complete_since_ns.is_some()
    }

    /// Whether the node delivers all kills of a count that begins then.
    pub(super) fn is_complete(&self, since_ns: u64) -> bool {
        self.complete_since_ns.is_some_and(|complete_ns| complete_ns <= since_ns)
    }

    /// Remembers a delivered kill that is not counted yet.
    pub(super) fn delivered_early(&mut self, at_ns: u64) {
        push_bounded(&mut self.early, at_ns);
    }

    /// How many of the kills counted in this interval were delivered already. Each is taken once.
    pub(super) fn take_early(&mut self, kills: u64, since_ns: u64, until_ns: u64) -> u64 {
        let mut taken = 0;
        self.early.retain(|at_ns| {
            let is_taken = taken < kills && is_within(*at_ns, since_ns, until_ns);
            taken += u64::from(is_taken);
            !is_taken
        });
        taken
    }

    /// Remembers kills that were attributed without the node.
    pub(super) fn inferred(&mut self, kills: u64, since_ns: u64, until_ns: u64) {
        if kills > 0 {
            push_bounded(&mut self.inferred, InferredKills { since_ns, until_ns, kills });
        }
    }

    /// Takes one inferred kill at that time; `false` if there is none.
    pub(super) fn take_inferred(&mut self, at_ns: u64) -> bool {
        let Some(at) = self.inferred.iter().position(|known| is_within(at_ns, known.since_ns, known.until_ns)) else {
            return false;
        };
        self.inferred[at].kills -= 1;
        if self.inferred[at].kills == 0 {
            self.inferred.remove(at);
        }
        true
    }
}

fn push_bounded<T>(remembered: &mut VecDeque<T>, one: T) {
    if remembered.len() == MAX_REMEMBERED {
        remembered.pop_front();
    }
    remembered.push_back(one);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::monitor::attribution::infer::Inference;
    use crate::monitor::explain::{GroupKill, Kills, MemoryFacts};

    fn kills(number: u64) -> Kills {
        Kills { number, group: GroupKill::No, facts: MemoryFacts::default() }
    }

    #[test]
    fn delivered_kill_leaves_its_count_whichever_comes_first() {
        let mut inference = Inference::default();
        inference.counted(kills(2), 100 * MS, 200 * MS);
        assert!(inference.settle(150 * MS) && inference.is_open());
        assert!(inference.settle(200 * MS + SLACK_NS) && !inference.is_open());
        assert!(inference.settle(350 * MS), "not counted yet");
        inference.counted(kills(1), 300 * MS, 400 * MS);
        assert!(!inference.is_open(), "it was delivered before");
        inference.counted(kills(1), 400 * MS, 500 * MS);
        assert!(inference.is_open(), "another one");
    }

    #[test]
    fn kill_of_another_interval_stays_counted() {
        let mut inference = Inference::default();
        inference.counted(kills(1), 100 * MS, 200 * MS);
        assert!(inference.settle(300 * MS) && inference.is_open());
        inference.counted(kills(1), 900 * MS, 999 * MS);
        assert!(inference.is_open());
    }

    #[test]
    fn delivery_of_an_inferred_kill_is_dropped_once() {
        let mut hand_over = HandOver::default();
        hand_over.inferred(1, 100 * MS, 200 * MS);
        assert!(!hand_over.take_inferred(900 * MS));
        assert!(hand_over.take_inferred(150 * MS) && !hand_over.take_inferred(150 * MS));
    }

    proptest! {
        /// Kills are counted in intervals, and delivered in any order relative to the counts.
        #[test]
        fn all_that_is_counted_and_delivered_is_settled(
            times in prop::collection::vec(1..50_u64, 1..40),
            delivered_first in prop::collection::vec(any::<bool>(), 40),
        ) {
            let mut inference = Inference::default();
            let mut now = 0;
            let mut late = Vec::new();
            for (gap, is_early) in times.iter().zip(&delivered_first) {
                let since = now;
                now += gap * 50 * MS;
                let killed = now - 25 * MS;
                if *is_early {
                    prop_assert!(inference.settle(killed));
                } else {
                    late.push(killed);
                }
                inference.counted(kills(1), since, now);
            }
            for at_ns in late {
                prop_assert!(inference.settle(at_ns));
            }
            prop_assert!(!inference.is_open() && inference.hand_over.early.is_empty());
        }
    }
}
