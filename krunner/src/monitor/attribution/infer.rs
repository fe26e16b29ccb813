//! Infers victims where only a number of kills is known, from a counter or from the agent.
//!
//! Pure. A [`KillBatch`] is a number of kills in an interval. Its candidates are the processes that disappeared since the start of
//! the interval and those that are dying of SIGKILL. The kernel kills the largest process (`oom_badness`, `mm/oom_kill.c`: its
//! memory plus `oom_score_adj` thousandths of the limit), so the largest candidate is the likeliest. One known to have died of
//! SIGKILL is likelier than one that is only absent.
//!
//! ```text
//!           counter rose                    scan since          enough candidates, or no other can come
//!  (none) ───────────────▶ open ──────────────────▶ scanned ──────────────────▶ attributed, closed
//!                                                      └── 10 s ──▶ the rest stays unattributed
//! ```
//!
//! Where a full scan takes too long, all PIDs are listed first and only the large processes are read
//! (`procfs::many_processes`). Victims that are certain by then are named; for the others a full scan follows.
//!
//! A batch never names more processes than were counted, a living process, or one process twice. A process observed alive a while
//! after the count exited for another reason, unless it held most of the limit: the kernel counts a kill before it sends the
//! signal, and the processor of a virtual machine may stop in between. A victim that dies slowly is waited for. Where `/proc` hides
//! processes, a process that disappeared is named only if no hidden one can have been larger.

mod assign;
mod exit_order;
mod group;
mod hand_over;

use std::cmp::Reverse;
use std::collections::VecDeque;

use super::correlate::Confidence;
use super::history::{Candidate, ProcessRecord};
use crate::monitor::explain::{Kills, MemoryFacts};
use crate::monitor::model::cgroup::CgroupFacts;
use crate::monitor::model::process::ExitKind;
use assign::{ScoredCandidate, assign};
use group::GroupKills;
use hand_over::{HandOver, is_within};

const MS: u64 = 1_000_000;

/// How long a better candidate may still appear: a scan takes up to 20 ms, and a victim's exit about as long.
const PATIENCE_NS: u64 = 60 * MS;

/// How long a counted kill waits for the machine's tracer to deliver it: on a busy machine a victim takes seconds to exit, and is
/// delivered then. The end of a step does not wait for it longer than [`FRESH_NS`].
const NODE_PATIENCE_NS: u64 = 5_000 * MS;

/// The victim has received SIGKILL by then: the kernel counts the kill, then sends the signal (`__oom_kill_process`,
/// `mm/oom_kill.c`).
const SPARED_NS: u64 = MS / 2;

/// How much later the signal may come where the host does not schedule the processor. TCG gives each a turn of up to 100 ms.
const DELAYED_NS: u64 = 100 * MS;

/// How long the end of a step waits for a kill's attribution. After that the kill is reported first and the victim follows.
const FRESH_NS: u64 = 600 * MS;

/// How long a victim may take to free a large amount of memory.
const SLOW_DEATH_NS: u64 = 10_000 * MS;

/// How long the container engine's event may take to arrive through the agent.
const AGENT_DELAY_NS: u64 = 5_000 * MS;

/// Maximum number of counted batches, plus one reported by the agent. Further kills join the last counted batch.
const MAX_BATCHES: usize = 16;

/// A size says little about the next moment if the process was younger than this or had just grown.
const ACTIVE_NS: u64 = 100 * MS;

/// The agent's event may stand for several kills. At most this many are named.
const MAX_POSSIBLE: u64 = 5;

/// A process known to die of SIGKILL counts as this many times larger.
const WEIGHT_OF_KILLED: u64 = 4;

/// A number of kills without known victims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::monitor) struct KillBatch {
    confidence: Confidence,
    /// Kills that are not attributed yet.
    kills: u64,
    /// The whole cgroup was killed, small processes included.
    is_group: bool,
    /// Start of the interval.
    since_ns: u64,
    /// When the kills became known.
    known_ns: u64,
    /// The scans since then.
    scanned: ScanCoverage,
    /// The kills were reported without a victim.
    is_announced: bool,
    /// The badness of the largest surviving process at the kill, at least; known once a scan has read it. The kernel does not choose
    /// a process with less.
    spared_bytes: Option<u64>,
    facts: MemoryFacts,
    /// Set where `/proc` hides processes: a process larger than this was larger than any hidden one.
    hidden_bytes: Option<u64>,
}

/// What scans have covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ScanCoverage {
    None,
    /// All PIDs were listed and the large processes read.
    Large,
    All,
}

/// A candidate that a batch attributes a kill to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::monitor) struct Attributed {
    pub(in crate::monitor) candidate: Candidate,
    pub(in crate::monitor) confidence: Confidence,
    /// When the kill became known.
    pub(in crate::monitor) known_ns: u64,
    pub(in crate::monitor) facts: MemoryFacts,
}

/// Kills whose victims stay unknown.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(in crate::monitor) struct UnattributedKills {
    pub(in crate::monitor) kills: u64,
    /// Those that the machine's tracer saw in another container.
    pub(in crate::monitor) elsewhere: u64,
}

/// The open batches.
#[derive(Debug, Default)]
pub(in crate::monitor) struct Inference {
    batches: VecDeque<KillBatch>,
    hand_over: HandOver,
    is_view_partial: bool,
    groups: GroupKills,
}

impl Inference {
    /// Notes that `/proc` hides processes. A visible one is then named only if no hidden one can be the victim.
    pub(in crate::monitor) fn view_is_partial(&mut self) {
        self.is_view_partial = true;
    }

    /// Opens a batch: the counter rose since that time.
    pub(in crate::monitor) fn counted(&mut self, kills: Kills, since_ns: u64, now_ns: u64) {
        let is_group = self.groups.includes(&kills, now_ns);
        let number = kills.number - self.hand_over.take_early(kills.number, since_ns, now_ns);
        if number == 0 {
            return;
        }
        self.open(KillBatch {
            confidence: Confidence::Inferred,
            kills: number,
            is_group,
            since_ns,
            known_ns: now_ns,
            scanned: ScanCoverage::None,
            is_announced: false,
            spared_bytes: None,
            hidden_bytes: self.hidden_bytes(kills.facts.cgroup.as_ref()),
            facts: kills.facts,
        });
    }

    /// From when on the machine's tracer delivers every kill; `None`: it delivers none.
    pub(in crate::monitor) fn node_delivers(&mut self, since_ns: Option<u64>) {
        self.hand_over.node_delivers(since_ns);
    }

    /// Kills up to then may be missing in what the machine's tracer delivers.
    pub(in crate::monitor) fn node_is_complete_from(&mut self, now_ns: u64) {
        self.hand_over.node_is_complete_from(now_ns);
    }

    /// Takes a delivered kill out of its count. Returns whether to report it: `false` if it was inferred already.
    #[must_use]
    pub(in crate::monitor) fn settle(&mut self, at_ns: u64) -> bool {
        let is_counted = |batch: &KillBatch| {
            batch.confidence == Confidence::Inferred && is_within(at_ns, batch.since_ns, batch.known_ns)
        };
        if let Some(at) = self.batches.iter().position(is_counted) {
            self.batches[at].kills -= 1;
            if self.batches[at].kills == 0 {
                self.batches.remove(at);
            }
            return true;
        }
        if self.hand_over.take_inferred(at_ns) {
            return false;
        }
        self.hand_over.delivered_early(at_ns);
        true
    }

    /// Notes the delivery of a kill whose victim was inferred.
    pub(in crate::monitor) fn settle_reported(&mut self, at_ns: u64) {
        self.hand_over.take_inferred(at_ns);
    }

    /// Opens a batch for the agent's event, unless one is open.
    pub(in crate::monitor) fn agent_reported_kill(&mut self, now_ns: u64) {
        if self.batches.iter().any(|batch| batch.confidence == Confidence::Possible) {
            return;
        }
        let since_ns = now_ns.saturating_sub(AGENT_DELAY_NS);
        self.open(KillBatch {
            confidence: Confidence::Possible,
            kills: MAX_POSSIBLE,
            is_group: false,
            since_ns,
            known_ns: now_ns,
            scanned: ScanCoverage::None,
            is_announced: false,
            spared_bytes: None,
            facts: MemoryFacts::default(),
            hidden_bytes: self.hidden_bytes(None),
        });
    }

    /// At most one process can have more than half of the cgroup's limit.
    fn hidden_bytes(&self, cgroup: Option<&CgroupFacts>) -> Option<u64> {
        let limit_bytes = cgroup.and_then(|cgroup| cgroup.limit_bytes);
        self.is_view_partial.then(|| limit_bytes.map_or(u64::MAX, |bytes| bytes / 2))
    }

    fn open(&mut self, batch: KillBatch) {
        let is_full = self.batches.len() >= MAX_BATCHES;
        let same = self.batches.iter_mut().rev().find(|other| other.confidence == batch.confidence);
        match same {
            Some(last) if is_full => {
                last.kills = last.kills.saturating_add(batch.kills);
                last.is_group |= batch.is_group;
                last.known_ns = batch.known_ns;
                (last.scanned, last.spared_bytes) = (ScanCoverage::None, None);
            }
            _ => self.batches.push_back(batch),
        }
    }

    /// Notes a full scan of `/proc` at that time.
    pub(in crate::monitor) fn scanned(&mut self, at_ns: u64) {
        for batch in self.batches.iter_mut().filter(|batch| batch.known_ns <= at_ns) {
            // The survivors' sizes may have changed.
            batch.spared_bytes = batch.spared_bytes.filter(|_| batch.scanned == ScanCoverage::All);
            batch.scanned = ScanCoverage::All;
        }
    }

    /// Notes that all PIDs were listed at that time and the large processes read.
    pub(in crate::monitor) fn listed(&mut self, at_ns: u64) {
        for batch in self.batches.iter_mut().filter(|batch| batch.known_ns <= at_ns) {
            batch.scanned = batch.scanned.max(ScanCoverage::Large);
        }
    }

    /// Whether a batch is open.
    #[must_use]
    pub(in crate::monitor) fn is_open(&self) -> bool {
        !self.batches.is_empty()
    }

    /// Whether a count is so recent that its attribution is worth waiting for.
    #[must_use]
    pub(in crate::monitor) fn has_fresh_kills(&self, now_ns: u64) -> bool {
        self.batches
            .iter()
            .any(|batch| batch.confidence == Confidence::Inferred && now_ns.saturating_sub(batch.known_ns) <= FRESH_NS)
    }

    /// Number of kills that were counted a while ago, are not attributed, and were not announced yet.
    pub(in crate::monitor) fn announce(&mut self, now_ns: u64) -> u64 {
        let is_due = |batch: &&mut KillBatch| {
            batch.confidence == Confidence::Inferred
                && !batch.is_announced
                && now_ns.saturating_sub(batch.known_ns) > FRESH_NS
        };
        let due = self.batches.iter_mut().filter(is_due).map(|batch| {
            batch.is_announced = true;
            batch.kills
        });
        due.sum()
    }

    /// Whether victims may disappear, or an attribution is due, within milliseconds.
    #[must_use]
    pub(in crate::monitor) fn is_busy(&self, now_ns: u64) -> bool {
        self.batches.iter().map(|batch| now_ns.saturating_sub(batch.known_ns)).any(|age_ns| {
            let is_due = self.hand_over.awaits_node() && age_ns.abs_diff(NODE_PATIENCE_NS) <= 10 * MS;
            age_ns <= PATIENCE_NS + 10 * MS || is_due
        })
    }

    /// The earliest time for which candidates are needed.
    #[must_use]
    pub(in crate::monitor) fn since_ns(&self) -> u64 {
        self.batches.iter().map(|batch| batch.since_ns).min().unwrap_or(u64::MAX)
    }

    /// Attributes what can be attributed by now, in the order of the batches. Also returns the kills that stay
    /// unattributed. `candidates` disappeared or are dying since [`Self::since_ns`]; `spared_bytes` gives the badness of the largest
    /// survivor in a cgroup at the kill, at least.
    pub(in crate::monitor) fn attribute(
        &mut self,
        mut candidates: Vec<Candidate>,
        mut spared_bytes: impl FnMut(Option<&CgroupFacts>) -> u64,
        now_ns: u64,
    ) -> (Vec<Attributed>, UnattributedKills) {
        for batch in
            self.batches.iter_mut().filter(|batch| batch.scanned > ScanCoverage::None && batch.spared_bytes.is_none())
        {
            batch.spared_bytes = Some(spared_bytes(batch.facts.cgroup.as_ref()));
        }
        let mut attributed = Vec::new();
        let mut unattributed = UnattributedKills::default();
        let assigned = self.assign(&candidates);
        let is_assigned =
            |candidate: &Candidate| assigned.iter().flatten().any(|other| other.process.key == candidate.process.key);
        candidates.retain(|candidate| !is_assigned(candidate));
        let mut assigned = assigned.into_iter();
        let hand_over = &mut self.hand_over;
        self.batches.retain_mut(|batch| {
            let assigned = assigned.next().unwrap_or_default();
            let named = match batch.confidence {
                _ if hand_over.awaits_node() && now_ns.saturating_sub(batch.known_ns) < NODE_PATIENCE_NS => Vec::new(),
                // What the node did not deliver happened in another container.
                Confidence::Inferred if hand_over.is_complete(batch.since_ns) => Vec::new(),
                Confidence::Possible => batch.select_possible(&candidates, now_ns),
                _ => batch.select(assigned, &candidates, now_ns),
            };
            // Any attribution answers the agent's event.
            let is_answered = batch.confidence == Confidence::Possible && !named.is_empty();
            if batch.confidence == Confidence::Inferred {
                hand_over.inferred(named.len() as u64, batch.since_ns, batch.known_ns);
            }
            for candidate in named {
                candidates.retain(|other| other.process.key != candidate.process.key);
                batch.kills -= 1;
                attributed.push(Attributed {
                    candidate,
                    confidence: batch.confidence,
                    known_ns: batch.known_ns,
                    facts: batch.facts.clone(),
                });
            }
            let is_over = is_answered || batch.is_over(now_ns);
            if is_over && batch.confidence == Confidence::Inferred {
                unattributed.kills += batch.kills;
                unattributed.elsewhere += if hand_over.is_complete(batch.since_ns) { batch.kills } else { 0 };
            }
            !is_over
        });
        (attributed, unattributed)
    }

    /// The candidates assigned to each batch. No candidate is in two batches. The agent's batch gets none here.
    fn assign(&self, candidates: &[Candidate]) -> Vec<Vec<Candidate>> {
        let is_counted =
            |batch: &KillBatch| batch.confidence == Confidence::Inferred && batch.scanned > ScanCoverage::None;
        let kills: Vec<usize> =
            self.batches.iter().map(|batch| if is_counted(batch) { batch.max_victims() } else { 0 }).collect();
        let mut candidates: Vec<&Candidate> = candidates.iter().collect();
        // Of equal ones the youngest comes first.
        candidates.sort_by_key(|candidate| Reverse(candidate.process.key));
        let mut scored: Vec<ScoredCandidate> = candidates
            .iter()
            .map(|candidate| ScoredCandidate {
                bytes: candidate.process.rss_bytes,
                is_killed: is_killed(candidate),
                likelihoods: Vec::new(),
            })
            .collect();
        for batch in &self.batches {
            let likelihoods =
                if is_counted(batch) { batch.likelihoods(&candidates) } else { vec![None; candidates.len()] };
            for (scored_candidate, likelihood) in scored.iter_mut().zip(likelihoods) {
                scored_candidate.likelihoods.push(likelihood);
            }
        }
        let batches = assign(&kills, &scored);
        batches.into_iter().map(|batch| batch.into_iter().map(|index| candidates[index].clone()).collect()).collect()
    }
}

impl KillBatch {
    fn is_over(&self, now_ns: u64) -> bool {
        self.kills == 0 || now_ns.saturating_sub(self.known_ns) > SLOW_DEATH_NS
    }

    fn max_victims(&self) -> usize {
        usize::try_from(self.kills).unwrap_or(usize::MAX)
    }

    /// The candidates that the batch attributes by now. Does not wait if all of them are known to be killed and no other fits. A
    /// process killed after the count may belong to the next count, which is still to come.
    fn select(&self, assigned: Vec<Candidate>, others: &[Candidate], now_ns: u64) -> Vec<Candidate> {
        let smallest = assigned.iter().map(|candidate| candidate.process.rss_bytes).min().unwrap_or(0);
        let is_rival = |other: &Candidate| {
            self.may_be_victim(other)
                && (is_killed(other) || other.process.rss_bytes > smallest / assign::MAX_SIZE_RATIO)
        };
        let is_sure =
            || assigned.len() == self.max_victims() && assigned.iter().all(is_killed) && !others.iter().any(is_rival);
        if self.is_patience_over(now_ns) || is_sure() { assigned } else { Vec::new() }
    }

    /// The candidates for the agent's event alone.
    fn select_possible(&self, candidates: &[Candidate], now_ns: u64) -> Vec<Candidate> {
        if self.scanned == ScanCoverage::None {
            return Vec::new();
        }
        let mut candidates: Vec<Candidate> =
            candidates.iter().filter(|candidate| self.may_be_victim(candidate)).cloned().collect();
        if candidates.iter().any(is_killed) {
            candidates.retain(is_killed);
        }
        candidates.sort_by_key(|candidate| (Reverse(self.likelihood(candidate)), Reverse(candidate.process.key)));
        candidates.truncate(self.max_victims());
        self.select(candidates, &[], now_ns)
    }

    fn is_patience_over(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.known_ns) >= PATIENCE_NS
    }

    fn may_be_victim(&self, candidate: &Candidate) -> bool {
        /// The OOM killer never chooses it (`OOM_SCORE_ADJ_MIN`, include/uapi/linux/oom.h).
        const NEVER: i16 = -1000;
        let is_killed = is_killed(candidate);
        let gone_ns = candidate.process.gone_at_boot_ns;
        let has_left = candidate.gone_by_ns.is_some_and(|by_ns| by_ns >= self.since_ns);
        let is_dying = is_killed && gone_ns.is_none();
        candidate.process.oom_score_adj != NEVER
            && candidate.end != Some(ExitKind::Other)
            && (!self.was_spared(candidate) || self.was_signalled_late(candidate))
            && (is_dying
                || has_left && (is_killed || !self.is_too_small(candidate) && self.is_largest_of_all(candidate)))
            && candidate.process.key.start_boot_ns() <= self.known_ns
    }

    /// Whether it lived when a victim would have been killed. The agent's event may be seconds late, and says nothing.
    fn was_spared(&self, candidate: &Candidate) -> bool {
        self.confidence == Confidence::Inferred
            && candidate.alive_ns.is_some_and(|alive_ns| alive_ns > self.known_ns + SPARED_NS)
    }

    /// Whether it is the victim all the same: it exited soon after, and no other process can have been larger.
    fn was_signalled_late(&self, candidate: &Candidate) -> bool {
        let ended_ns = candidate.process.gone_at_boot_ns.or(candidate.end_ns);
        ended_ns.is_some_and(|ended_ns| ended_ns <= self.known_ns + DELAYED_NS)
            && self.limit_bytes().is_some_and(|bytes| candidate.process.rss_bytes > bytes / 2)
    }

    /// Whether it was idle and smaller than a survivor: the kernel kills the largest. Before a full scan, a victim that was not
    /// observed to grow may still turn up, so only size counts.
    fn is_too_small(&self, candidate: &Candidate) -> bool {
        // The adjustment is in thousandths of an unknown limit, which may exceed any size.
        let is_preferred = candidate.process.oom_score_adj > 0 && self.limit_bytes().is_none();
        let is_quiet =
            candidate.alive_ns.is_some_and(|alive_ns| alive_ns.saturating_sub(candidate.grown_ns) > ACTIVE_NS);
        (is_quiet || self.scanned < ScanCoverage::All)
            && !self.is_group
            && !is_preferred
            // The kernel compares resident memory and swap, and what is in swap may all be the candidate's.
            && self.badness(candidate).saturating_add(self.facts.swap_bytes) < self.spared_bytes.unwrap_or(0)
    }

    /// Whether no hidden process can have been larger.
    fn is_largest_of_all(&self, candidate: &Candidate) -> bool {
        // More than half of memory and swap together.
        let half_of_swap_bytes = self.facts.swap_bytes / 2;
        self.hidden_bytes.is_none_or(|bytes| candidate.process.rss_bytes > bytes.saturating_add(half_of_swap_bytes))
    }

    fn limit_bytes(&self) -> Option<u64> {
        self.facts.cgroup.as_ref()?.limit_bytes
    }

    fn badness(&self, candidate: &Candidate) -> u64 {
        badness_bytes(&candidate.process, self.limit_bytes())
    }

    /// The size, weighted if the process is known to be killed.
    fn likelihood(&self, candidate: &Candidate) -> u64 {
        let badness = self.badness(candidate);
        if is_killed(candidate) { badness.saturating_mul(WEIGHT_OF_KILLED).max(1) } else { badness }
    }
}

/// The size of a process as the kernel compares it (`oom_badness`, `mm/oom_kill.c`): `oom_score_adj` counts in thousandths of the
/// limit, and for nothing if the limit is not known.
pub(super) fn badness_bytes(process: &ProcessRecord, limit_bytes: Option<u64>) -> u64 {
    let thousandth = (limit_bytes.unwrap_or(0) / 1000).cast_signed();
    process.rss_bytes.saturating_add_signed(thousandth.saturating_mul(process.oom_score_adj.into()))
}

fn is_killed(candidate: &Candidate) -> bool {
    candidate.end == Some(ExitKind::Killed)
}

#[cfg(test)]
#[path = "infer_tests.rs"]
mod tests;
