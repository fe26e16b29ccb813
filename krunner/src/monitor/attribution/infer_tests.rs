//! Who is attributed: never too many, never one that lives, never one twice; and the likeliest first.

use std::collections::HashSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::monitor::attribution::history::ProcessRecord;
use crate::monitor::explain::GroupKill;
use crate::monitor::model::process::{Cmdline, ProcessKey};

const SECOND: u64 = 1000 * MS;

fn key(pid: u32) -> ProcessKey {
    ProcessKey { pid, start_ticks: 1 }
}

/// One that left at that time and was last seen alive before, at a time that says nothing.
fn left(pid: u32, rss_bytes: u64, gone_ns: u64) -> Candidate {
    let process = ProcessRecord {
        key: key(pid),
        name: "p".into(),
        cmdline: Arc::new(Cmdline::default()),
        first_cmdline: None,
        vm_bytes: rss_bytes,
        rss_bytes,
        oom_score_adj: 0,
        gone_at_boot_ns: Some(gone_ns),
    };
    Candidate { process, end: None, end_ns: None, gone_by_ns: Some(gone_ns), alive_ns: Some(0), grown_ns: 0 }
}

fn killed(candidate: Candidate) -> Candidate {
    Candidate { end: Some(ExitKind::Killed), ..candidate }
}

fn kills(number: u64, cgroup: Option<CgroupFacts>) -> Kills {
    Kills { number, group: GroupKill::No, facts: MemoryFacts { cgroup, ..MemoryFacts::default() } }
}

/// A batch of so many kills between 9 and 10 s, after the look that it asked for.
fn batch(number: u64) -> Inference {
    let mut inference = Inference::default();
    inference.counted(kills(number, None), 9 * SECOND, 10 * SECOND);
    inference.scanned(10 * SECOND);
    inference
}

const AT_ONCE: u64 = 10 * SECOND + MS;
const IN_A_WHILE: u64 = 10 * SECOND + PATIENCE_NS;
const LATE: u64 = 10 * SECOND + SLOW_DEATH_NS + MS;

/// Pids of those attributed, and how many kills stay without a name.
fn attribute(inference: &mut Inference, candidates: &[Candidate], now_ns: u64) -> (Vec<u32>, u64) {
    let (attributed, unattributed) = inference.attribute(candidates.to_vec(), |_| 0, now_ns);
    (attributed.iter().map(|attributed| attributed.candidate.process.key.pid).collect(), unattributed.kills)
}

#[test]
fn largest_candidate_wins_after_waiting() {
    let candidates = [left(7, 10, 10 * SECOND), left(8, 30, 10 * SECOND), left(9, 20, 10 * SECOND)];
    let mut inference = batch(2);
    assert_eq!(attribute(&mut inference, &candidates, AT_ONCE), (vec![], 0));
    assert_eq!(attribute(&mut inference, &candidates, IN_A_WHILE), (vec![8, 9], 0));
    assert!(!inference.is_open());
}

/// Two containers share a memory cgroup, and the node delivers each kill to one of them.
#[test]
fn nobody_is_named_for_a_kill_that_a_connected_node_does_not_deliver() {
    let candidates = [left(7, 10, 10 * SECOND)];
    let mut elsewhere = batch(1);
    elsewhere.node_delivers(Some(9 * SECOND));
    let after_patience = 10 * SECOND + NODE_PATIENCE_NS;
    assert_eq!(attribute(&mut elsewhere, &candidates, after_patience), (vec![], 0));
    let (_, unattributed) = elsewhere.attribute(candidates.to_vec(), |_| 0, LATE);
    assert_eq!(unattributed, UnattributedKills { kills: 1, elsewhere: 1 });

    // The node was not there all the time, lost records, or is gone.
    let changes: [fn(&mut Inference); 3] = [
        |inference| inference.node_delivers(Some(9 * SECOND + MS)),
        |inference| {
            inference.node_delivers(Some(SECOND));
            inference.node_is_complete_from(11 * SECOND);
        },
        |inference| {
            inference.node_delivers(Some(SECOND));
            inference.node_delivers(None);
        },
    ];
    for change in changes {
        let mut inference = batch(1);
        change(&mut inference);
        assert_eq!(attribute(&mut inference, &candidates, after_patience), (vec![7], 0));
    }
}

#[test]
fn killed_process_is_named_at_once() {
    let mut dying = killed(left(7, 10, 0));
    dying.process.gone_at_boot_ns = None;
    let candidates = [dying.clone(), left(8, 1, 10 * SECOND)];
    assert_eq!(attribute(&mut batch(1), &candidates, AT_ONCE), (vec![7], 0));
    // One about as large has left meanwhile.
    let candidates = [dying, left(8, 30, 10 * SECOND)];
    let mut inference = batch(1);
    assert_eq!(attribute(&mut inference, &candidates, AT_ONCE), (vec![], 0));
    assert_eq!(attribute(&mut inference, &candidates, IN_A_WHILE), (vec![7], 0));
}

#[test]
fn next_victim_does_not_hide_the_previous_one() {
    let first = left(7, 12, 10 * SECOND - MS);
    let mut second = killed(Candidate { alive_ns: Some(10 * SECOND - MS), ..left(8, 16, 0) });
    second.process.gone_at_boot_ns = None;
    let candidates = [first, second];
    let mut inference = batch(1);
    assert_eq!(attribute(&mut inference, &candidates, AT_ONCE), (vec![], 0));
    inference.counted(kills(1, None), 10 * SECOND, 10 * SECOND + 30 * MS);
    inference.scanned(10 * SECOND + 31 * MS);
    assert_eq!(attribute(&mut inference, &candidates, 10 * SECOND + 31 * MS), (vec![8], 0));
    assert_eq!(attribute(&mut inference, &candidates[..1], IN_A_WHILE), (vec![7], 0));
}

#[test]
fn much_larger_process_beats_one_that_was_killed() {
    let small = killed(left(7, 10, 10 * SECOND));
    let mut inference = batch(2);
    let candidates = [small, left(8, 10 * WEIGHT_OF_KILLED + 1, 10 * SECOND)];
    let (attributed, _) = inference.attribute(candidates.to_vec(), |_| 0, IN_A_WHILE);
    let order: Vec<u32> = attributed.iter().map(|attributed| attributed.candidate.process.key.pid).collect();
    assert_eq!(order, [8, 7]);
}

#[test]
fn exited_later_and_surviving_processes_are_not_candidates() {
    let exited = Candidate { end: Some(ExitKind::Other), ..left(7, 50, 10 * SECOND) };
    let spared = Candidate { alive_ns: Some(10 * SECOND + SPARED_NS + 1), ..left(8, 50, 10 * SECOND + 30 * MS) };
    let mut exempt = left(9, 50, 10 * SECOND);
    exempt.process.oom_score_adj = -1000;
    let mut newcomer = left(10, 50, 10 * SECOND + 10 * MS);
    newcomer.process.key.start_ticks = 1001;
    let earlier = left(11, 50, 9 * SECOND - 1);
    // The victim of a later kill.
    let later = killed(Candidate { alive_ns: Some(10 * SECOND + SPARED_NS + 1), ..left(12, 50, 11 * SECOND) });
    let candidates = [exited, spared, exempt, newcomer, earlier, later];
    let mut inference = batch(1);
    assert_eq!(attribute(&mut inference, &candidates, IN_A_WHILE), (vec![], 0));
    assert_eq!(attribute(&mut inference, &candidates, LATE), (vec![], 1), "no bystander is named");
    assert!(!inference.is_open());
}

fn limited(limit_bytes: u64) -> CgroupFacts {
    let (path, limit_bytes) = ("/a".into(), Some(limit_bytes));
    CgroupFacts { path, version: 2, limit_bytes, usage_bytes: None, oom_kill_count: Some(1) }
}

/// The host did not schedule the processor between the count and the signal.
#[test]
fn signal_may_come_after_the_count() {
    let named = |rss_bytes, gone_ns| {
        let mut inference = Inference::default();
        inference.counted(kills(1, Some(limited(100))), 9 * SECOND, 10 * SECOND);
        inference.scanned(10 * SECOND);
        let alive_ns = Some(10 * SECOND + 20 * MS);
        let candidate = Candidate { alive_ns, grown_ns: 10 * SECOND, ..left(7, rss_bytes, gone_ns) };
        attribute(&mut inference, &[candidate], 11 * SECOND).0
    };
    assert_eq!(named(51, 10 * SECOND + 80 * MS), [7]);
    assert_eq!(named(50, 10 * SECOND + 80 * MS), Vec::<u32>::new(), "another may have been larger");
    assert_eq!(named(51, 10 * SECOND + 101 * MS), Vec::<u32>::new(), "it ended for another reason");
}

#[test]
fn consecutive_kills_have_distinct_victims() {
    let mut inference = Inference::default();
    inference.counted(kills(1, None), 9 * SECOND, 10 * SECOND);
    inference.counted(kills(1, None), 10 * SECOND, 10 * SECOND + 40 * MS);
    inference.scanned(10 * SECOND + 50 * MS);
    let first = killed(left(7, 10, 10 * SECOND + MS));
    let second = killed(Candidate { alive_ns: Some(10 * SECOND + 20 * MS), ..left(8, 20, 10 * SECOND + 45 * MS) });
    assert_eq!(attribute(&mut inference, &[first, second], 10 * SECOND + 51 * MS), (vec![7, 8], 0));
}

#[test]
fn slow_exit_is_waited_for() {
    let mut inference = batch(1);
    assert_eq!(attribute(&mut inference, &[], IN_A_WHILE), (vec![], 0));
    let slow = killed(left(7, 10, 13 * SECOND));
    assert_eq!(attribute(&mut inference, &[slow], 13 * SECOND), (vec![7], 0));
}

#[test]
fn oom_score_adj_counts() {
    let facts =
        CgroupFacts { path: "/".into(), version: 2, limit_bytes: Some(1000), usage_bytes: None, oom_kill_count: None };
    let mut inference = Inference::default();
    inference.counted(kills(1, Some(facts)), 9 * SECOND, 10 * SECOND);
    inference.scanned(10 * SECOND);
    let mut adjusted = left(7, 10, 10 * SECOND);
    adjusted.process.oom_score_adj = 500;
    assert_eq!(attribute(&mut inference, &[adjusted, left(8, 400, 10 * SECOND)], IN_A_WHILE), (vec![7], 0));
}

#[test]
fn agents_event_covers_a_longer_interval() {
    let mut inference = Inference::default();
    inference.agent_reported_kill(10 * SECOND);
    inference.agent_reported_kill(10 * SECOND + MS);
    inference.scanned(10 * SECOND + 2 * MS);
    let at = 10 * SECOND + PATIENCE_NS;
    let (attributed, _) = inference.attribute(vec![left(7, 1, 6 * SECOND), left(8, 2, 4 * SECOND)], |_| 0, at);
    let [attributed] = &attributed[..] else { panic!("{attributed:?}") };
    assert_eq!((attributed.candidate.process.key.pid, attributed.confidence), (7, Confidence::Possible));

    inference.agent_reported_kill(20 * SECOND);
    inference.scanned(20 * SECOND);
    assert_eq!(attribute(&mut inference, &[], 20 * SECOND + SLOW_DEATH_NS + MS), (vec![], 0));
    assert!(!inference.is_open());
}

#[test]
fn agents_event_names_all_candidates_unless_some_were_killed() {
    let word = || {
        let mut inference = Inference::default();
        inference.agent_reported_kill(10 * SECOND);
        inference.scanned(10 * SECOND);
        inference
    };
    let many: Vec<Candidate> = (1..10).map(|pid| left(pid, pid.into(), 9 * SECOND)).collect();
    assert_eq!(attribute(&mut word(), &many, IN_A_WHILE), (vec![9, 8, 7, 6, 5], 0));
    let one: Vec<Candidate> = many.iter().cloned().chain([killed(left(20, 1, 9 * SECOND))]).collect();
    assert_eq!(attribute(&mut word(), &one, IN_A_WHILE), (vec![20], 0));
}

#[test]
fn idle_process_smaller_than_a_survivor_is_no_victim() {
    let alive_ns = Some(10 * SECOND - MS);
    let quiet = |pid, rss_bytes| Candidate { alive_ns, grown_ns: 9 * SECOND, ..left(pid, rss_bytes, 10 * SECOND) };
    let growing = Candidate { grown_ns: 10 * SECOND - 2 * MS, ..quiet(7, 1) };
    let attributed = |candidate: Candidate| {
        let (attributed, _) = batch(1).attribute(vec![candidate], |_| 900, IN_A_WHILE);
        attributed.len()
    };
    assert_eq!(attributed(quiet(7, 1)), 0);
    assert_eq!(attributed(quiet(7, 900)), 1, "about as large");
    assert_eq!(attributed(growing), 1, "it may have been large a moment later");
    assert_eq!(attributed(killed(quiet(7, 1))), 1);
    let mut group = Inference::default();
    group.counted(Kills { group: GroupKill::Members, ..kills(2, None) }, 9 * SECOND, 10 * SECOND);
    group.scanned(10 * SECOND);
    let (attributed, _) = group.attribute(vec![quiet(7, 1), quiet(8, 2000)], |_| 1000, IN_A_WHILE);
    assert_eq!(attributed.len(), 2, "the small one went with the large one");
}

#[test]
fn members_that_are_counted_after_their_group_belong_to_it() {
    let of_next = |after_ns: u64, is_same_cgroup: bool, group: GroupKill| {
        let mut inference = Inference::default();
        let (group_ns, next_ns) = (10 * SECOND, 10 * SECOND + after_ns);
        inference.counted(Kills { group, ..kills(2, Some(limited(2000))) }, 9 * SECOND, group_ns);
        let mut cgroup = limited(2000);
        cgroup.path = if is_same_cgroup { cgroup.path } else { "/another".into() };
        inference.counted(kills(1, Some(cgroup)), group_ns, next_ns);
        inference.scanned(next_ns);
        let quiet = |pid, rss_bytes| Candidate {
            alive_ns: Some(10 * SECOND - MS),
            grown_ns: 9 * SECOND,
            ..left(pid, rss_bytes, next_ns)
        };
        inference.batches.pop_front();
        attribute_beside(&mut inference, &[quiet(7, 1)], 1000, next_ns + PATIENCE_NS)
    };
    for group in [GroupKill::Members, GroupKill::Begun] {
        assert_eq!(of_next(150 * MS, true, group), [7], "the kernel was still killing the group");
        assert_eq!(of_next(150 * MS, false, group), [0; 0]);
        assert_eq!(of_next(2 * SECOND, true, group), [0; 0]);
    }
    assert_eq!(of_next(150 * MS, true, GroupKill::Possible), [0; 0], "only a group that the kernel counted goes on");
}

/// Pids of those attributed beside a survivor of that size.
fn attribute_beside(inference: &mut Inference, candidates: &[Candidate], spared_bytes: u64, now_ns: u64) -> Vec<u32> {
    let (attributed, _) = inference.attribute(candidates.to_vec(), |_| spared_bytes, now_ns);
    attributed.iter().map(|attributed| attributed.candidate.process.key.pid).collect()
}

#[test]
fn excess_batches_are_merged() {
    let mut inference = Inference::default();
    for at in 0..3 * MAX_BATCHES as u64 {
        inference.counted(kills(1, None), 9 * SECOND, 10 * SECOND + at);
    }
    assert_eq!(inference.batches.len(), MAX_BATCHES);
    let kills: u64 = inference.batches.iter().map(|batch| batch.kills).sum();
    assert_eq!(kills, 3 * MAX_BATCHES as u64);
}

fn untold(candidates: &[Candidate], told: &HashSet<ProcessKey>) -> Vec<Candidate> {
    candidates.iter().filter(|candidate| !told.contains(&candidate.process.key)).cloned().collect()
}

/// What may happen, in steps of 10 ms.
#[derive(Debug, Clone)]
enum Step {
    Counted(u64),
    AgentReportedKill,
    ScanCoverage,
    Ends { pid: u32, end: Option<ExitKind> },
    Judged,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let end = prop_oneof![Just(None), Just(Some(ExitKind::Other)), Just(Some(ExitKind::Killed))];
    let step = prop_oneof![
        1 => (1u64..4).prop_map(Step::Counted),
        1 => Just(Step::AgentReportedKill),
        1 => Just(Step::ScanCoverage),
        2 => (1u32..20, end).prop_map(|(pid, end)| Step::Ends { pid, end }),
        3 => Just(Step::Judged),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #[test]
    fn no_survivor_is_ever_named(steps in steps(), sizes in proptest::collection::vec(0u64..1000, 20)) {
        let mut inference = Inference::default();
        let mut candidates: Vec<Candidate> = Vec::new();
        let mut told: HashSet<ProcessKey> = HashSet::new();
        let (mut counted, mut by_word, mut inferred, mut possible, mut unattributed) = (0, 0, 0, 0, 0);
        let mut now_ns = 10 * SECOND;
        let mut counted_ns = now_ns;
        for step in steps {
            now_ns += 10 * MS;
            match step {
                Step::Counted(number) => {
                    inference.counted(kills(number, None), counted_ns, now_ns);
                    counted += number;
                    counted_ns = now_ns;
                }
                Step::AgentReportedKill => {
                    inference.agent_reported_kill(now_ns);
                    by_word += 1;
                }
                Step::ScanCoverage => inference.scanned(now_ns),
                Step::Ends { pid, end } => {
                    if candidates.iter().all(|candidate| candidate.process.key.pid != pid) {
                        let alive_ns = Some(now_ns - 10 * MS);
                        candidates.push(Candidate { end, alive_ns, ..left(pid, sizes[pid as usize], now_ns) });
                    }
                }
                Step::Judged => {
                    let (attributed, lost) = inference.attribute(untold(&candidates, &told), |_| 0, now_ns);
                    unattributed += lost.kills;
                    for attributed in attributed {
                        let candidate = &attributed.candidate;
                        prop_assert!(candidate.process.gone_at_boot_ns.is_some(), "it lives: {candidate:?}");
                        prop_assert!(candidate.end != Some(ExitKind::Other), "it ended otherwise: {candidate:?}");
                        prop_assert!(told.insert(candidate.process.key), "twice: {candidate:?}");
                        match attributed.confidence {
                            Confidence::Inferred => inferred += 1,
                            _ => possible += 1,
                        }
                    }
                }
            }
            prop_assert!(inferred + unattributed <= counted, "{inferred} and {unattributed} of {counted}");
            prop_assert!(possible <= by_word * MAX_POSSIBLE, "{possible} of {by_word}");
        }
        // In the end each kill that was counted has a name or is told to have none.
        inference.scanned(now_ns);
        let (attributed, lost) = inference.attribute(untold(&candidates, &told), |_| 0, now_ns + SLOW_DEATH_NS + MS);
        let last = attributed.iter().filter(|attributed| attributed.confidence == Confidence::Inferred).count() as u64;
        prop_assert_eq!(inferred + last + unattributed + lost.kills, counted);
        prop_assert!(!inference.is_open());
    }
}

#[test]
fn before_a_full_scan_only_a_process_as_large_as_the_survivors_is_named() {
    let listed = || {
        let mut inference = Inference::default();
        inference.counted(kills(1, None), 9 * SECOND, 10 * SECOND);
        inference.listed(10 * SECOND + 1);
        inference
    };
    let named = |inference: &mut Inference, candidate: Candidate, spared_bytes, now_ns| {
        inference.attribute(vec![candidate], |_| spared_bytes, now_ns).0.len()
    };
    // Young when it was last seen: its size says little, but everybody has not been read yet.
    let young =
        |rss_bytes| Candidate { grown_ns: 9 * SECOND, alive_ns: Some(9 * SECOND), ..left(1, rss_bytes, 10 * SECOND) };
    assert_eq!(named(&mut listed(), young(100), 50, IN_A_WHILE), 1, "large");
    assert_eq!(named(&mut listed(), killed(young(10)), 50, AT_ONCE), 1, "seen to be killed");
    let mut inference = listed();
    assert_eq!(named(&mut inference, young(10), 50, IN_A_WHILE), 0, "a larger one lives");
    inference.scanned(10 * SECOND + 2);
    assert_eq!(named(&mut inference, young(10), 50, IN_A_WHILE), 1, "nobody else turned up");
}

#[test]
fn when_a_supervisor_kills_the_rest_the_first_exit_is_the_victim() {
    let gone = left(7, 21, 10 * SECOND - MS);
    let dying = |pid, rss_bytes| {
        let candidate = killed(left(pid, rss_bytes, 10 * SECOND + 5 * MS));
        Candidate { end_ns: Some(10 * SECOND - MS), ..candidate }
    };
    let candidates = [gone.clone(), dying(8, 20), dying(9, 17)];
    assert_eq!(attribute(&mut batch(1), &candidates, IN_A_WHILE), (vec![7], 0), "gone while the others were dying");
    // A small one that left early is not it, and one that was killed alone is.
    let candidates = [left(7, 9, 10 * SECOND - MS), dying(8, 20), dying(9, 17)];
    assert_eq!(attribute(&mut batch(1), &candidates, IN_A_WHILE), (vec![8], 0));
    assert_eq!(attribute(&mut batch(1), &[gone, dying(8, 20)], IN_A_WHILE), (vec![8], 0));
}

#[test]
fn with_hidden_processes_only_a_certain_victim_is_named() {
    let cgroup = limited(100);
    let named = |candidate: Candidate| {
        let mut inference = Inference::default();
        inference.view_is_partial();
        inference.counted(kills(1, Some(cgroup.clone())), 9 * SECOND, 10 * SECOND);
        inference.scanned(10 * SECOND);
        let in_time = attribute(&mut inference, std::slice::from_ref(&candidate), IN_A_WHILE).0;
        (in_time, attribute(&mut inference, &[candidate], LATE).1)
    };
    assert_eq!(named(left(7, 50, 10 * SECOND)), (vec![], 1), "a hidden one may have had the other half");
    assert_eq!(named(left(7, 51, 10 * SECOND)), (vec![7], 0));
    assert_eq!(named(killed(left(7, 1, 10 * SECOND))), (vec![7], 0));
}

/// The kernel compares resident memory and swap, and scans read resident memory only.
#[test]
fn what_is_in_swap_may_be_the_victims() {
    let swapped = |swap_bytes| {
        let facts = MemoryFacts { swap_bytes, ..MemoryFacts::default() };
        let mut inference = Inference::default();
        inference.counted(Kills { number: 1, group: GroupKill::No, facts }, 9 * SECOND, 10 * SECOND);
        inference.scanned(10 * SECOND);
        let alive_ns = Some(10 * SECOND - MS);
        let quiet = Candidate { alive_ns, grown_ns: 9 * SECOND, ..left(7, 1, 10 * SECOND) };
        inference.attribute(vec![quiet], |_| 750, IN_A_WHILE).0.len()
    };
    assert_eq!([0, 100, 749].map(swapped), [0, 0, 1]);
}

#[test]
fn hidden_process_may_have_what_is_in_swap() {
    let named = |rss_bytes| {
        let mut inference = Inference::default();
        inference.view_is_partial();
        let cgroup = CgroupFacts {
            path: "/a".into(),
            version: 2,
            limit_bytes: Some(100),
            usage_bytes: None,
            oom_kill_count: None,
        };
        let facts = MemoryFacts { cgroup: Some(cgroup), swap_bytes: 20, ..MemoryFacts::default() };
        inference.counted(Kills { number: 1, group: GroupKill::No, facts }, 9 * SECOND, 10 * SECOND);
        inference.scanned(10 * SECOND);
        attribute(&mut inference, &[left(7, rss_bytes, 10 * SECOND)], IN_A_WHILE).0
    };
    assert_eq!([60, 61].map(named), [vec![], vec![7]]);
}

#[test]
fn oom_score_adj_overrides_size_without_a_known_limit() {
    let small = |oom_score_adj| {
        let mut small = Candidate { alive_ns: Some(10 * SECOND), grown_ns: SECOND, ..left(7, 8, 10 * SECOND) };
        small.process.oom_score_adj = oom_score_adj;
        batch(1).attribute(vec![small], |_| 16, IN_A_WHILE).0.len()
    };
    assert_eq!((small(1000), small(0)), (1, 0));
}
