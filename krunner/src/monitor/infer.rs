//! Who was it, where only a number is known: kills that a counter told of, and nobody who saw them.
//!
//! Pure. A [`Case`] is so many kills in a stretch of time; those who have left since then are its suspects, and so
//! are those who are seen to be dying of SIGKILL. The kernel takes the largest (`oom_badness`, `mm/oom_kill.c`: memory,
//! and `oom_score_adj` thousandths of what may be had), so the largest is the likeliest, and one that is known
//! to have died of SIGKILL likelier than one that just is not there any more.
//!
//! ```text
//!           counter grew                a look since          enough suspects, or nobody else can come
//!  (none) ───────────────▶ open ──────────────────▶ looked ──────────────────▶ named, closed
//!                                                      └── 10 s ──▶ what is left stays without a name
//! ```
//!
//! Where reading everybody takes too long, all are listed first and only the large are read (`procfs::crowd`). Whoever can
//! be named by then is; for the others everybody is read.
//!
//! Never more than the counter, never one that lives, never the same one twice. Whoever was seen alive a while
//! after the count has left for another reason. A victim that is slow to die is waited for. Where `/proc` hides some
//! processes, nobody is named for having left at that time unless no hidden one can have been larger.

mod assign;
mod order;

use std::cmp::Reverse;
use std::collections::VecDeque;

use super::cgroup::CgroupFacts;
use super::cgroup::counter::Kills;
use super::history::Suspect;
use super::join::Confidence;
use super::process::End;
use assign::{Candidate, assign};

const MS: u64 = 1_000_000;

/// Who is named may still be bettered for so long: a look takes up to 20 ms, a victim's death about as much.
const PATIENCE_NS: u64 = 60 * MS;

/// A victim has got its signal by then: the kernel counts it first and sends the signal next (`__oom_kill_process`,
/// `mm/oom_kill.c`).
const SPARED_NS: u64 = MS / 2;

/// How long the end of a step waits for the name of a kill. After that the kill alone is told, and the name follows.
const FRESH_NS: u64 = 600 * MS;

/// Giving back a large memory takes its time.
const SLOW_DEATH_NS: u64 = 10_000 * MS;

/// The container engine's word may take this long to come by way of the agent.
const AGENT_DELAY_NS: u64 = 5_000 * MS;

/// Cases at a time, and one by the agent's word; further kills join the last one that was counted.
const MAX_CASES: usize = 16;

/// A size says little of what it was a moment later for one who was as young as that, or had just grown.
const LIVELY_NS: u64 = 100 * MS;

/// By the agent's word alone there may have been more than one; so many are named at most.
const MOST_POSSIBLE: u64 = 5;

/// Seen to die of SIGKILL weighs as much as being so many times as large.
const WEIGHT_OF_KILLED: u64 = 4;

/// Kills that are known of, but not whose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Case {
    confidence: Confidence,
    /// How many of them have no name yet.
    kills: u64,
    /// The small ones of a cgroup went with the large one.
    is_group: bool,
    /// Nobody can have been killed before.
    since_ns: u64,
    /// When it was known.
    known_ns: u64,
    /// What was looked at since then.
    looked: Looked,
    /// That there were kills was told, without a name.
    is_announced: bool,
    /// The largest that was spared, once somebody has looked: the kernel takes nobody who is smaller.
    spared_bytes: Option<u64>,
    cgroup: Option<CgroupFacts>,
    /// Set where `/proc` hides some processes: one that was larger than this was larger than any of those.
    hidden_bytes: Option<u64>,
}

/// Where somebody has looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Looked {
    Nowhere,
    /// All processes were listed, and the large ones read.
    AtTheLarge,
    AtEverybody,
}

/// Somebody whom a case accuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Accused {
    pub(super) suspect: Suspect,
    pub(super) confidence: Confidence,
    /// When the kill was known of.
    pub(super) known_ns: u64,
    pub(super) cgroup: Option<CgroupFacts>,
}

/// Open cases.
#[derive(Debug, Default)]
pub(super) struct Inference {
    cases: VecDeque<Case>,
    is_view_partial: bool,
}

impl Inference {
    /// `/proc` hides some processes: from now on those that it shows are accused only where no hidden one can be meant.
    pub(super) fn view_is_partial(&mut self) {
        self.is_view_partial = true;
    }

    /// A counter has grown by so many since that time.
    pub(super) fn counted(&mut self, kills: Kills, since_ns: u64, now_ns: u64) {
        self.open(Case {
            confidence: Confidence::Inferred,
            kills: kills.number,
            is_group: kills.is_group,
            since_ns,
            known_ns: now_ns,
            looked: Looked::Nowhere,
            is_announced: false,
            spared_bytes: None,
            hidden_bytes: self.hidden_bytes(kills.cgroup.as_ref()),
            cgroup: kills.cgroup,
        });
    }

    /// The agent says that there was a kill; there may be others who say so too.
    pub(super) fn told_of_kill(&mut self, now_ns: u64) {
        if self.cases.iter().any(|case| case.confidence == Confidence::Possible) {
            return;
        }
        let since_ns = now_ns.saturating_sub(AGENT_DELAY_NS);
        self.open(Case {
            confidence: Confidence::Possible,
            kills: MOST_POSSIBLE,
            is_group: false,
            since_ns,
            known_ns: now_ns,
            looked: Looked::Nowhere,
            is_announced: false,
            spared_bytes: None,
            cgroup: None,
            hidden_bytes: self.hidden_bytes(None),
        });
    }

    /// Only one can have more than half of what the cgroup may have.
    fn hidden_bytes(&self, cgroup: Option<&CgroupFacts>) -> Option<u64> {
        let limit_bytes = cgroup.and_then(|cgroup| cgroup.limit_bytes);
        self.is_view_partial.then(|| limit_bytes.map_or(u64::MAX, |bytes| bytes / 2))
    }

    fn open(&mut self, case: Case) {
        let is_full = self.cases.len() >= MAX_CASES;
        let same = self.cases.iter_mut().rev().find(|other| other.confidence == case.confidence);
        match same {
            Some(last) if is_full => {
                last.kills = last.kills.saturating_add(case.kills);
                last.is_group |= case.is_group;
                last.known_ns = case.known_ns;
                (last.looked, last.spared_bytes) = (Looked::Nowhere, None);
            }
            _ => self.cases.push_back(case),
        }
    }

    /// All of `/proc` was looked at, at that time.
    pub(super) fn looked(&mut self, at_ns: u64) {
        for case in self.cases.iter_mut().filter(|case| case.known_ns <= at_ns) {
            // What was known of those who live may have changed.
            case.spared_bytes = case.spared_bytes.filter(|_| case.looked == Looked::AtEverybody);
            case.looked = Looked::AtEverybody;
        }
    }

    /// All of `/proc` was listed at that time, and the large processes were read.
    pub(super) fn listed(&mut self, at_ns: u64) {
        for case in self.cases.iter_mut().filter(|case| case.known_ns <= at_ns) {
            case.looked = case.looked.max(Looked::AtTheLarge);
        }
    }

    /// Whether somebody waits for a verdict.
    #[must_use]
    pub(super) fn is_open(&self) -> bool {
        !self.cases.is_empty()
    }

    /// Whether kills were counted so recently that their names are worth waiting for.
    #[must_use]
    pub(super) fn has_fresh_kills(&self, now_ns: u64) -> bool {
        self.cases
            .iter()
            .any(|case| case.confidence == Confidence::Inferred && now_ns.saturating_sub(case.known_ns) <= FRESH_NS)
    }

    /// How many kills were counted a while ago, have no name yet, and were not announced before.
    pub(super) fn announce(&mut self, now_ns: u64) -> u64 {
        let is_due = |case: &&mut Case| {
            case.confidence == Confidence::Inferred
                && !case.is_announced
                && now_ns.saturating_sub(case.known_ns) > FRESH_NS
        };
        let due = self.cases.iter_mut().filter(is_due).map(|case| {
            case.is_announced = true;
            case.kills
        });
        due.sum()
    }

    /// Whether a verdict is near, so that time should pass in small steps.
    #[must_use]
    pub(super) fn is_busy(&self, now_ns: u64) -> bool {
        self.cases.iter().any(|case| now_ns.saturating_sub(case.known_ns) <= PATIENCE_NS + 10 * MS)
    }

    /// How far back suspects are wanted.
    #[must_use]
    pub(super) fn since_ns(&self) -> u64 {
        self.cases.iter().map(|case| case.since_ns).min().unwrap_or(u64::MAX)
    }

    /// Whom the cases accuse by now, in the order of the cases, and how many kills have waited for a name too long.
    /// `suspects` have left or are dying since [`Self::since_ns`]; `spared_bytes` is asked for the size of the
    /// largest that lives in a cgroup.
    pub(super) fn judge(
        &mut self,
        mut suspects: Vec<Suspect>,
        mut spared_bytes: impl FnMut(Option<&CgroupFacts>) -> u64,
        now_ns: u64,
    ) -> (Vec<Accused>, u64) {
        for case in self.cases.iter_mut().filter(|case| case.looked > Looked::Nowhere && case.spared_bytes.is_none()) {
            case.spared_bytes = Some(spared_bytes(case.cgroup.as_ref()));
        }
        let mut accused = Vec::new();
        let mut unnamed = 0;
        let assigned = self.assign(&suspects);
        let is_assigned =
            |suspect: &Suspect| assigned.iter().flatten().any(|other| other.known.key == suspect.known.key);
        suspects.retain(|suspect| !is_assigned(suspect));
        let mut assigned = assigned.into_iter();
        self.cases.retain_mut(|case| {
            let assigned = assigned.next().unwrap_or_default();
            let named = match case.confidence {
                Confidence::Possible => case.name_by_hearsay(&suspects, now_ns),
                _ => case.name(assigned, &suspects, now_ns),
            };
            // What the agent has said is answered by whoever can be named by then.
            let is_answered = case.confidence == Confidence::Possible && !named.is_empty();
            for suspect in named {
                suspects.retain(|other| other.known.key != suspect.known.key);
                case.kills -= 1;
                accused.push(Accused {
                    suspect,
                    confidence: case.confidence,
                    known_ns: case.known_ns,
                    cgroup: case.cgroup.clone(),
                });
            }
            let is_over = is_answered || case.is_over(now_ns);
            if is_over && case.confidence == Confidence::Inferred {
                unnamed += case.kills;
            }
            !is_over
        });
        (accused, unnamed)
    }

    /// For each case whom it may accuse: nobody in two of them, and by the agent's word alone nobody yet.
    fn assign(&self, suspects: &[Suspect]) -> Vec<Vec<Suspect>> {
        let is_counted = |case: &Case| case.confidence == Confidence::Inferred && case.looked > Looked::Nowhere;
        let kills: Vec<usize> = self.cases.iter().map(|case| if is_counted(case) { case.most() } else { 0 }).collect();
        let mut suspects: Vec<&Suspect> = suspects.iter().collect();
        // Among equals the last one to come.
        suspects.sort_by_key(|suspect| Reverse(suspect.known.key));
        let mut candidates: Vec<Candidate> = suspects
            .iter()
            .map(|suspect| Candidate {
                bytes: suspect.known.rss_bytes,
                is_killed: is_killed(suspect),
                likelihoods: Vec::new(),
            })
            .collect();
        for case in &self.cases {
            let likelihoods = if is_counted(case) { case.likelihoods(&suspects) } else { vec![None; suspects.len()] };
            for (candidate, likelihood) in candidates.iter_mut().zip(likelihoods) {
                candidate.likelihoods.push(likelihood);
            }
        }
        let cases = assign(&kills, &candidates);
        cases.into_iter().map(|case| case.into_iter().map(|index| suspects[index].clone()).collect()).collect()
    }
}

impl Case {
    fn is_over(&self, now_ns: u64) -> bool {
        self.kills == 0 || now_ns.saturating_sub(self.known_ns) > SLOW_DEATH_NS
    }

    fn most(&self) -> usize {
        usize::try_from(self.kills).unwrap_or(usize::MAX)
    }

    /// Whom it accuses by now: those who are assigned to it, at once if all of them were seen to be killed and nobody else
    /// can be meant. One that is seen to be killed after the count may belong to the next count, which has not come.
    fn name(&self, assigned: Vec<Suspect>, others: &[Suspect], now_ns: u64) -> Vec<Suspect> {
        let smallest = assigned.iter().map(|suspect| suspect.known.rss_bytes).min().unwrap_or(0);
        let is_rival = |other: &Suspect| {
            self.may_be(other) && (is_killed(other) || other.known.rss_bytes > smallest / assign::PART)
        };
        let is_sure =
            || assigned.len() == self.most() && assigned.iter().all(is_killed) && !others.iter().any(is_rival);
        if self.is_patience_over(now_ns) || is_sure() { assigned } else { Vec::new() }
    }

    /// Whom it accuses by the agent's word alone.
    fn name_by_hearsay(&self, suspects: &[Suspect], now_ns: u64) -> Vec<Suspect> {
        if self.looked == Looked::Nowhere {
            return Vec::new();
        }
        let mut suspects: Vec<Suspect> = suspects.iter().filter(|suspect| self.may_be(suspect)).cloned().collect();
        if suspects.iter().any(is_killed) {
            suspects.retain(is_killed);
        }
        suspects.sort_by_key(|suspect| (Reverse(self.likelihood(suspect)), Reverse(suspect.known.key)));
        suspects.truncate(self.most());
        self.name(suspects, &[], now_ns)
    }

    fn is_patience_over(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.known_ns) >= PATIENCE_NS
    }

    fn may_be(&self, suspect: &Suspect) -> bool {
        /// Never chosen (`OOM_SCORE_ADJ_MIN`, include/uapi/linux/oom.h).
        const NEVER: i16 = -1000;
        let is_killed = is_killed(suspect);
        let gone_ns = suspect.known.gone_at_boot_ns;
        let has_left = gone_ns.is_some_and(|gone_ns| gone_ns >= self.since_ns);
        let is_dying = is_killed && gone_ns.is_none();
        // By the agent's word a kill may be seconds old.
        let was_spared = self.confidence == Confidence::Inferred
            && suspect.alive_ns.is_some_and(|alive_ns| alive_ns > self.known_ns + SPARED_NS);
        suspect.known.oom_score_adj != NEVER
            && suspect.end != Some(End::Other)
            && !was_spared
            && (is_dying || has_left && (is_killed || !self.is_too_small(suspect) && self.is_largest_of_all(suspect)))
            && suspect.known.key.start_boot_ns() <= self.known_ns
    }

    /// Quiet, and smaller than somebody who lives: the kernel takes the largest. Some margin is left for what sizes do
    /// between two looks. Before everybody was looked at, a victim that nobody has seen to grow may still turn up: then
    /// only size counts.
    fn is_too_small(&self, suspect: &Suspect) -> bool {
        // Raised by thousandths of a limit that is not known, which may be more than any size.
        let is_preferred = suspect.known.oom_score_adj > 0 && self.limit_bytes().is_none();
        let is_quiet = suspect.alive_ns.is_some_and(|alive_ns| alive_ns.saturating_sub(suspect.grown_ns) > LIVELY_NS);
        (is_quiet || self.looked < Looked::AtEverybody)
            && !self.is_group
            && !is_preferred
            && self.badness(suspect) < self.spared_bytes.unwrap_or(0) / 4 * 3
    }

    /// No hidden one can have been larger.
    fn is_largest_of_all(&self, suspect: &Suspect) -> bool {
        self.hidden_bytes.is_none_or(|bytes| suspect.known.rss_bytes > bytes)
    }

    fn limit_bytes(&self) -> Option<u64> {
        self.cgroup.as_ref()?.limit_bytes
    }

    /// As the kernel weighs it.
    fn badness(&self, suspect: &Suspect) -> u64 {
        let limit_bytes = self.limit_bytes().unwrap_or(0);
        let adjust = (limit_bytes / 1000).cast_signed().saturating_mul(suspect.known.oom_score_adj.into());
        suspect.known.rss_bytes.saturating_add_signed(adjust)
    }

    /// More for those who are known to be killed.
    fn likelihood(&self, suspect: &Suspect) -> u64 {
        let badness = self.badness(suspect);
        if is_killed(suspect) { badness.saturating_mul(WEIGHT_OF_KILLED).max(1) } else { badness }
    }
}

fn is_killed(suspect: &Suspect) -> bool {
    suspect.end == Some(End::Killed)
}

#[cfg(test)]
#[path = "infer_tests.rs"]
mod tests;
