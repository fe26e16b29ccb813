//! Assigns candidates to batches whose intervals overlap.
//!
//! A process that disappeared between two counts may be the victim of either. Giving the first batch its likeliest candidate may
//! leave the second without one, and a real victim of the first unnamed. So candidates are matched to kills, likeliest first, and
//! a matched candidate moves to another batch if that makes room (augmenting paths: the result attributes as many kills as
//! possible, with the likeliest candidates among such results). A candidate does not move for a much smaller one, which more
//! likely exited for another reason.

/// A candidate with its score in each batch.
#[derive(Debug, Clone)]
pub(super) struct ScoredCandidate {
    /// Its size; 0 if it was not read.
    pub(super) bytes: u64,
    /// It is known to be killed, so its size does not exclude it.
    pub(super) is_killed: bool,
    /// The scores; `None` where it cannot be the victim.
    pub(super) likelihoods: Vec<Option<u64>>,
}

/// Failures after which less likely candidates are skipped: an attempt may visit all matched candidates.
const MAX_FAILED: usize = 256;

/// A candidate moves for one of at least this fraction of its size: a growing process was several times smaller at the last scan.
pub(super) const MAX_SIZE_RATIO: u64 = 8;

/// For each batch the indexes of its candidates, likeliest first and no more than its kills.
pub(super) fn assign(kills: &[usize], candidates: &[ScoredCandidate]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    let best = |candidate: &usize| candidates[*candidate].likelihoods.iter().flatten().max().copied();
    order.sort_by_key(|candidate| (std::cmp::Reverse(best(candidate)), *candidate));
    let mut matching = Matching { kills, candidates, batches: vec![Vec::new(); kills.len()] };
    let mut failed = 0;
    for candidate in order {
        if best(&candidate).is_none() || matching.is_full() || failed == MAX_FAILED {
            break;
        }
        let mut visited = vec![false; kills.len()];
        failed += usize::from(!matching.find_slot(candidate, &candidates[candidate], &mut visited));
    }
    for (batch, members) in matching.batches.iter_mut().enumerate() {
        members.sort_by_key(|candidate| (std::cmp::Reverse(candidates[*candidate].likelihoods[batch]), *candidate));
    }
    matching.batches
}

struct Matching<'a> {
    kills: &'a [usize],
    candidates: &'a [ScoredCandidate],
    batches: Vec<Vec<usize>>,
}

impl Matching<'_> {
    fn is_full(&self) -> bool {
        self.batches.iter().zip(self.kills).all(|(members, kills)| members.len() == *kills)
    }

    /// Finds a slot for `candidate` so that in the end `newcomer` has one. Recurses at most once per batch.
    fn find_slot(&mut self, candidate: usize, newcomer: &ScoredCandidate, visited: &mut [bool]) -> bool {
        let candidates = self.candidates;
        for (batch, own) in candidates[candidate].likelihoods.iter().enumerate() {
            if own.is_none() || std::mem::replace(&mut visited[batch], true) {
                continue;
            }
            if self.batches[batch].len() < self.kills[batch] {
                self.batches[batch].push(candidate);
                return true;
            }
            for index in 0..self.batches[batch].len() {
                let other = self.batches[batch][index];
                let may_move = newcomer.is_killed || newcomer.bytes >= candidates[other].bytes / MAX_SIZE_RATIO;
                if may_move && self.find_slot(other, newcomer, visited) {
                    self.batches[batch][index] = candidate;
                    return true;
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate(bytes: u64, likelihoods: &[Option<u64>]) -> ScoredCandidate {
        ScoredCandidate { bytes, is_killed: false, likelihoods: likelihoods.to_vec() }
    }

    #[test]
    fn likeliest_candidates_are_assigned() {
        let candidates = [Some(1), Some(3), None, Some(2)].map(|likelihood| candidate(1, &[likelihood]));
        assert_eq!(assign(&[2], &candidates), [[1, 3]]);
    }

    #[test]
    fn flexible_candidate_yields_to_a_constrained_one() {
        // Two kills, then one: the second candidate disappeared between the counts.
        let candidates =
            [candidate(17, &[Some(17), None]), candidate(16, &[Some(16), Some(16)]), candidate(11, &[Some(11), None])];
        assert_eq!(assign(&[2, 1], &candidates), [vec![0, 2], vec![1]]);
    }

    #[test]
    fn chain_of_kills_is_assigned_from_its_end() {
        // Four kills in sequence. Each victim disappeared one or two counts later; two were observed to be killed.
        let candidates = [
            candidate(13, &[Some(13), None, None, None]),
            candidate(16, &[Some(16), Some(16), None, None]),
            candidate(22, &[Some(88), Some(88), Some(88), None]),
            candidate(25, &[None, None, Some(100), Some(100)]),
        ];
        assert_eq!(assign(&[1; 4], &candidates), [[0], [1], [2], [3]]);
    }

    #[test]
    fn candidate_does_not_yield_to_a_much_smaller_one() {
        let candidates = [candidate(16, &[Some(16), Some(16)]), candidate(1, &[Some(1), None])];
        assert_eq!(assign(&[1, 1], &candidates), [vec![0], vec![]]);
    }

    /// The maximum number of attributions, by exhaustive search.
    fn most(kills: &[usize], candidates: &[ScoredCandidate]) -> usize {
        let Some((first, others)) = candidates.split_first() else { return 0 };
        let without = most(kills, others);
        let with = first.likelihoods.iter().enumerate().filter(|(batch, own)| own.is_some() && kills[*batch] > 0).map(
            |(batch, _)| {
                let mut left = kills.to_vec();
                left[batch] -= 1;
                1 + most(&left, others)
            },
        );
        with.max().unwrap_or(0).max(without)
    }

    proptest! {
        /// Attributes the maximum number, and no candidate twice.
        #[test]
        fn maximum_number_of_kills_is_attributed(
            kills in proptest::collection::vec(0usize..3, 3),
            likelihoods in proptest::collection::vec(proptest::collection::vec(proptest::option::of(50u64..100), 3), 0..7),
        ) {
            let candidates: Vec<ScoredCandidate> = likelihoods.iter().map(|row| candidate(1, row)).collect();
            let batches = assign(&kills, &candidates);
            let mut named: Vec<usize> = batches.iter().flatten().copied().collect();
            let number = named.len();
            for (batch, members) in batches.iter().enumerate() {
                prop_assert!(members.len() <= kills[batch]);
                prop_assert!(members.iter().all(|candidate| likelihoods[*candidate][batch].is_some()));
            }
            named.sort_unstable();
            named.dedup();
            prop_assert_eq!(named.len(), number);
            prop_assert_eq!(number, most(&kills, &candidates));
        }
    }
}
