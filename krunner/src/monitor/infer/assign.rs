//! Which suspect belongs to which case, where the stretches of several cases overlap.
//!
//! One that left between two counts may be the victim of either. Taking the likeliest for the first case can leave the
//! second without a victim, and a real victim of the first without a name. So suspects are matched to kills: the likeliest
//! first, and one that was matched moves to another case when that makes room (augmenting paths; the result names as many
//! kills as can be named, and the likeliest suspects among such results). One does not move for a much smaller one, which
//! rather left for another reason.

/// A suspect, and what it is worth in each case.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    /// How large it was; may never have been seen.
    pub(super) bytes: u64,
    /// Seen to be killed, so it is not too small.
    pub(super) is_killed: bool,
    /// `None` where it cannot be the victim.
    pub(super) likelihoods: Vec<Option<u64>>,
}

/// After so many without a place the less likely ones are not tried: trying one may take a look at all that have one.
const MOST_FAILED: usize = 256;

/// One moves for another that is at least this part as large: what eats was several times smaller at the look before.
pub(super) const PART: u64 = 8;

/// For each case the candidates that it gets, by index, the likeliest first: at most as many as its kills.
pub(super) fn assign(kills: &[usize], candidates: &[Candidate]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    let best = |suspect: &usize| candidates[*suspect].likelihoods.iter().flatten().max().copied();
    order.sort_by_key(|suspect| (std::cmp::Reverse(best(suspect)), *suspect));
    let mut matching = Matching { kills, candidates, cases: vec![Vec::new(); kills.len()] };
    let mut failed = 0;
    for suspect in order {
        if best(&suspect).is_none() || matching.is_full() || failed == MOST_FAILED {
            break;
        }
        let mut visited = vec![false; kills.len()];
        failed += usize::from(!matching.place(suspect, &candidates[suspect], &mut visited));
    }
    for (case, members) in matching.cases.iter_mut().enumerate() {
        members.sort_by_key(|suspect| (std::cmp::Reverse(candidates[*suspect].likelihoods[case]), *suspect));
    }
    matching.cases
}

struct Matching<'a> {
    kills: &'a [usize],
    candidates: &'a [Candidate],
    cases: Vec<Vec<usize>>,
}

impl Matching<'_> {
    fn is_full(&self) -> bool {
        self.cases.iter().zip(self.kills).all(|(members, kills)| members.len() == *kills)
    }

    /// Finds a place, so that in the end that newcomer has one. As deep as there are cases at most.
    fn place(&mut self, suspect: usize, newcomer: &Candidate, visited: &mut [bool]) -> bool {
        let candidates = self.candidates;
        for (case, own) in candidates[suspect].likelihoods.iter().enumerate() {
            if own.is_none() || std::mem::replace(&mut visited[case], true) {
                continue;
            }
            if self.cases[case].len() < self.kills[case] {
                self.cases[case].push(suspect);
                return true;
            }
            for index in 0..self.cases[case].len() {
                let other = self.cases[case][index];
                let may_move = newcomer.is_killed || newcomer.bytes >= candidates[other].bytes / PART;
                if may_move && self.place(other, newcomer, visited) {
                    self.cases[case][index] = suspect;
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

    fn candidate(bytes: u64, likelihoods: &[Option<u64>]) -> Candidate {
        Candidate { bytes, is_killed: false, likelihoods: likelihoods.to_vec() }
    }

    #[test]
    fn the_likeliest_get_the_places() {
        let candidates = [Some(1), Some(3), None, Some(2)].map(|likelihood| candidate(1, &[likelihood]));
        assert_eq!(assign(&[2], &candidates), [[1, 3]]);
    }

    #[test]
    fn one_that_fits_two_cases_leaves_its_place_to_one_that_fits_one() {
        // Two kills, then one: the second suspect left between the counts.
        let candidates =
            [candidate(17, &[Some(17), None]), candidate(16, &[Some(16), Some(16)]), candidate(11, &[Some(11), None])];
        assert_eq!(assign(&[2, 1], &candidates), [vec![0, 2], vec![1]]);
    }

    #[test]
    fn a_row_of_kills_is_filled_from_its_end() {
        // Four kills, one after the other, each victim gone one or two counts later; two were seen to be killed.
        let candidates = [
            candidate(13, &[Some(13), None, None, None]),
            candidate(16, &[Some(16), Some(16), None, None]),
            candidate(22, &[Some(88), Some(88), Some(88), None]),
            candidate(25, &[None, None, Some(100), Some(100)]),
        ];
        assert_eq!(assign(&[1; 4], &candidates), [[0], [1], [2], [3]]);
    }

    #[test]
    fn one_does_not_leave_its_place_to_one_that_is_much_smaller() {
        let candidates = [candidate(16, &[Some(16), Some(16)]), candidate(1, &[Some(1), None])];
        assert_eq!(assign(&[1, 1], &candidates), [vec![0], vec![]]);
    }

    /// The most kills that can be named, by trying everything.
    fn most(kills: &[usize], candidates: &[Candidate]) -> usize {
        let Some((first, others)) = candidates.split_first() else { return 0 };
        let without = most(kills, others);
        let with = first.likelihoods.iter().enumerate().filter(|(case, own)| own.is_some() && kills[*case] > 0).map(
            |(case, _)| {
                let mut left = kills.to_vec();
                left[case] -= 1;
                1 + most(&left, others)
            },
        );
        with.max().unwrap_or(0).max(without)
    }

    proptest! {
        /// As many as can be are named, and nobody twice.
        #[test]
        fn as_many_are_named_as_can_be(
            kills in proptest::collection::vec(0usize..3, 3),
            likelihoods in proptest::collection::vec(proptest::collection::vec(proptest::option::of(50u64..100), 3), 0..7),
        ) {
            let candidates: Vec<Candidate> = likelihoods.iter().map(|row| candidate(1, row)).collect();
            let cases = assign(&kills, &candidates);
            let mut named: Vec<usize> = cases.iter().flatten().copied().collect();
            let number = named.len();
            for (case, members) in cases.iter().enumerate() {
                prop_assert!(members.len() <= kills[case]);
                prop_assert!(members.iter().all(|suspect| likelihoods[*suspect][case].is_some()));
            }
            named.sort_unstable();
            named.dedup();
            prop_assert_eq!(named.len(), number);
            prop_assert_eq!(number, most(&kills, &candidates));
        }
    }
}
