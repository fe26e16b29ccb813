//! Who is accused: never too many, never one that lives, never one twice; and the likeliest first.

use std::collections::HashSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::event::ProcessKey;
use super::super::history::Known;
use super::super::process::Cmdline;
use super::*;

const SECOND: u64 = 1000 * MS;

fn key(pid: u32) -> ProcessKey {
    ProcessKey { pid, start_ticks: 1 }
}

/// One that left at that time and was last seen alive before, at a time that says nothing.
fn left(pid: u32, rss_bytes: u64, gone_ns: u64) -> Suspect {
    let known = Known {
        key: key(pid),
        name: "p".into(),
        cmdline: Arc::new(Cmdline::default()),
        first_cmdline: None,
        vm_bytes: rss_bytes,
        rss_bytes,
        oom_score_adj: 0,
        gone_at_boot_ns: Some(gone_ns),
    };
    Suspect { known, end: None, end_ns: None, alive_ns: Some(0), grown_ns: 0 }
}

fn killed(suspect: Suspect) -> Suspect {
    Suspect { end: Some(End::Killed), ..suspect }
}

fn kills(number: u64, cgroup: Option<CgroupFacts>) -> Kills {
    Kills { number, is_group: false, cgroup }
}

/// A case of so many kills between 9 and 10 s, after the look that it asked for.
fn case(number: u64) -> Inference {
    let mut inference = Inference::default();
    inference.counted(kills(number, None), 9 * SECOND, 10 * SECOND);
    inference.looked(10 * SECOND);
    inference
}

const AT_ONCE: u64 = 10 * SECOND + MS;
const IN_A_WHILE: u64 = 10 * SECOND + PATIENCE_NS;
const LATE: u64 = 10 * SECOND + SLOW_DEATH_NS + MS;

/// Pids of those accused, and how many kills stay without a name.
fn verdict(inference: &mut Inference, suspects: &[Suspect], now_ns: u64) -> (Vec<u32>, u64) {
    let (accused, unnamed) = inference.judge(suspects.to_vec(), |_| 0, now_ns);
    (accused.iter().map(|accused| accused.suspect.known.key.pid).collect(), unnamed)
}

#[test]
fn the_largest_is_the_likeliest_and_others_may_still_come() {
    let suspects = [left(7, 10, 10 * SECOND), left(8, 30, 10 * SECOND), left(9, 20, 10 * SECOND)];
    let mut inference = case(2);
    assert_eq!(verdict(&mut inference, &suspects, AT_ONCE), (vec![], 0));
    assert_eq!(verdict(&mut inference, &suspects, IN_A_WHILE), (vec![8, 9], 0));
    assert!(!inference.is_open());
}

#[test]
fn who_is_known_to_be_killed_is_accused_at_once_also_before_its_end() {
    let mut dying = killed(left(7, 10, 0));
    dying.known.gone_at_boot_ns = None;
    let suspects = [dying.clone(), left(8, 1, 10 * SECOND)];
    assert_eq!(verdict(&mut case(1), &suspects, AT_ONCE), (vec![7], 0));
    // One about as large has left meanwhile.
    let suspects = [dying, left(8, 30, 10 * SECOND)];
    let mut inference = case(1);
    assert_eq!(verdict(&mut inference, &suspects, AT_ONCE), (vec![], 0));
    assert_eq!(verdict(&mut inference, &suspects, IN_A_WHILE), (vec![7], 0));
}

#[test]
fn one_killed_before_the_count_is_named_although_the_next_victim_is_seen_to_die() {
    let first = left(7, 12, 10 * SECOND - MS);
    let mut second = killed(Suspect { alive_ns: Some(10 * SECOND - MS), ..left(8, 16, 0) });
    second.known.gone_at_boot_ns = None;
    let suspects = [first, second];
    let mut inference = case(1);
    assert_eq!(verdict(&mut inference, &suspects, AT_ONCE), (vec![], 0));
    inference.counted(kills(1, None), 10 * SECOND, 10 * SECOND + 30 * MS);
    inference.looked(10 * SECOND + 31 * MS);
    assert_eq!(verdict(&mut inference, &suspects, 10 * SECOND + 31 * MS), (vec![8], 0));
    assert_eq!(verdict(&mut inference, &suspects[..1], IN_A_WHILE), (vec![7], 0));
}

#[test]
fn a_much_larger_one_is_likelier_than_one_killed_by_whoever() {
    let small = killed(left(7, 10, 10 * SECOND));
    let mut inference = case(2);
    let suspects = [small, left(8, 10 * WEIGHT_OF_KILLED + 1, 10 * SECOND)];
    let (accused, _) = inference.judge(suspects.to_vec(), |_| 0, IN_A_WHILE);
    let order: Vec<u32> = accused.iter().map(|accused| accused.suspect.known.key.pid).collect();
    assert_eq!(order, [8, 7]);
}

#[test]
fn who_ended_otherwise_or_came_later_or_lived_on_is_no_victim() {
    let exited = Suspect { end: Some(End::Other), ..left(7, 50, 10 * SECOND) };
    let spared = Suspect { alive_ns: Some(10 * SECOND + SPARED_NS + 1), ..left(8, 50, 10 * SECOND + 30 * MS) };
    let mut exempt = left(9, 50, 10 * SECOND);
    exempt.known.oom_score_adj = -1000;
    let mut newcomer = left(10, 50, 10 * SECOND + 10 * MS);
    newcomer.known.key.start_ticks = 1001;
    let earlier = left(11, 50, 9 * SECOND - 1);
    // The victim of a later kill.
    let later = killed(Suspect { alive_ns: Some(10 * SECOND + SPARED_NS + 1), ..left(12, 50, 11 * SECOND) });
    let suspects = [exited, spared, exempt, newcomer, earlier, later];
    let mut inference = case(1);
    assert_eq!(verdict(&mut inference, &suspects, IN_A_WHILE), (vec![], 0));
    assert_eq!(verdict(&mut inference, &suspects, LATE), (vec![], 1), "nobody is blamed for want of a better one");
    assert!(!inference.is_open());
}

#[test]
fn kills_in_a_row_have_each_their_own_victim() {
    let mut inference = Inference::default();
    inference.counted(kills(1, None), 9 * SECOND, 10 * SECOND);
    inference.counted(kills(1, None), 10 * SECOND, 10 * SECOND + 40 * MS);
    inference.looked(10 * SECOND + 50 * MS);
    let first = killed(left(7, 10, 10 * SECOND + MS));
    let second = killed(Suspect { alive_ns: Some(10 * SECOND + 20 * MS), ..left(8, 20, 10 * SECOND + 45 * MS) });
    assert_eq!(verdict(&mut inference, &[first, second], 10 * SECOND + 51 * MS), (vec![7, 8], 0));
}

#[test]
fn one_that_takes_its_time_to_die_is_waited_for() {
    let mut inference = case(1);
    assert_eq!(verdict(&mut inference, &[], IN_A_WHILE), (vec![], 0));
    let slow = killed(left(7, 10, 13 * SECOND));
    assert_eq!(verdict(&mut inference, &[slow], 13 * SECOND), (vec![7], 0));
}

#[test]
fn what_the_kernel_adds_to_a_size_counts() {
    let facts =
        CgroupFacts { path: "/".into(), version: 2, limit_bytes: Some(1000), usage_bytes: None, oom_kill_count: None };
    let mut inference = Inference::default();
    inference.counted(kills(1, Some(facts)), 9 * SECOND, 10 * SECOND);
    inference.looked(10 * SECOND);
    let mut adjusted = left(7, 10, 10 * SECOND);
    adjusted.known.oom_score_adj = 500;
    assert_eq!(verdict(&mut inference, &[adjusted, left(8, 400, 10 * SECOND)], IN_A_WHILE), (vec![7], 0));
}

#[test]
fn the_agents_word_reaches_further_back_and_stays_silent_about_nobody() {
    let mut inference = Inference::default();
    inference.told_of_kill(10 * SECOND);
    inference.told_of_kill(10 * SECOND + MS);
    inference.looked(10 * SECOND + 2 * MS);
    let at = 10 * SECOND + PATIENCE_NS;
    let (accused, _) = inference.judge(vec![left(7, 1, 6 * SECOND), left(8, 2, 4 * SECOND)], |_| 0, at);
    let [accused] = &accused[..] else { panic!("{accused:?}") };
    assert_eq!((accused.suspect.known.key.pid, accused.confidence), (7, Confidence::Possible));

    inference.told_of_kill(20 * SECOND);
    inference.looked(20 * SECOND);
    assert_eq!(verdict(&mut inference, &[], 20 * SECOND + SLOW_DEATH_NS + MS), (vec![], 0));
    assert!(!inference.is_open());
}

#[test]
fn by_the_agents_word_all_are_possible_unless_some_are_known_to_be_killed() {
    let word = || {
        let mut inference = Inference::default();
        inference.told_of_kill(10 * SECOND);
        inference.looked(10 * SECOND);
        inference
    };
    let many: Vec<Suspect> = (1..10).map(|pid| left(pid, pid.into(), 9 * SECOND)).collect();
    assert_eq!(verdict(&mut word(), &many, IN_A_WHILE), (vec![9, 8, 7, 6, 5], 0));
    let one: Vec<Suspect> = many.iter().cloned().chain([killed(left(20, 1, 9 * SECOND))]).collect();
    assert_eq!(verdict(&mut word(), &one, IN_A_WHILE), (vec![20], 0));
}

#[test]
fn who_is_quiet_and_smaller_than_one_who_lives_is_no_victim() {
    let alive_ns = Some(10 * SECOND - MS);
    let quiet = |pid, rss_bytes| Suspect { alive_ns, grown_ns: 9 * SECOND, ..left(pid, rss_bytes, 10 * SECOND) };
    let growing = Suspect { grown_ns: 10 * SECOND - 2 * MS, ..quiet(7, 1) };
    let verdict = |suspect: Suspect| {
        let (accused, _) = case(1).judge(vec![suspect], |_| 1000, IN_A_WHILE);
        accused.len()
    };
    assert_eq!(verdict(quiet(7, 1)), 0);
    assert_eq!(verdict(quiet(7, 900)), 1, "about as large");
    assert_eq!(verdict(growing), 1, "it may have been large a moment later");
    assert_eq!(verdict(killed(quiet(7, 1))), 1);
    let mut group = Inference::default();
    group.counted(Kills { is_group: true, ..kills(2, None) }, 9 * SECOND, 10 * SECOND);
    group.looked(10 * SECOND);
    let (accused, _) = group.judge(vec![quiet(7, 1), quiet(8, 2000)], |_| 1000, IN_A_WHILE);
    assert_eq!(accused.len(), 2, "the small one went with the large one");
}

#[test]
fn more_cases_than_there_is_room_for_are_one() {
    let mut inference = Inference::default();
    for at in 0..3 * MAX_CASES as u64 {
        inference.counted(kills(1, None), 9 * SECOND, 10 * SECOND + at);
    }
    assert_eq!(inference.cases.len(), MAX_CASES);
    let kills: u64 = inference.cases.iter().map(|case| case.kills).sum();
    assert_eq!(kills, 3 * MAX_CASES as u64);
}

fn untold(suspects: &[Suspect], told: &HashSet<ProcessKey>) -> Vec<Suspect> {
    suspects.iter().filter(|suspect| !told.contains(&suspect.known.key)).cloned().collect()
}

/// What may happen, in steps of 10 ms.
#[derive(Debug, Clone)]
enum Step {
    Counted(u64),
    ToldOfKill,
    Looked,
    Ends { pid: u32, end: Option<End> },
    Judged,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let end = prop_oneof![Just(None), Just(Some(End::Other)), Just(Some(End::Killed))];
    let step = prop_oneof![
        1 => (1u64..4).prop_map(Step::Counted),
        1 => Just(Step::ToldOfKill),
        1 => Just(Step::Looked),
        2 => (1u32..20, end).prop_map(|(pid, end)| Step::Ends { pid, end }),
        3 => Just(Step::Judged),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #[test]
    fn whatever_happens_nobody_is_blamed_wrongly(steps in steps(), sizes in proptest::collection::vec(0u64..1000, 20)) {
        let mut inference = Inference::default();
        let mut suspects: Vec<Suspect> = Vec::new();
        let mut told: HashSet<ProcessKey> = HashSet::new();
        let (mut counted, mut by_word, mut inferred, mut possible, mut unnamed) = (0, 0, 0, 0, 0);
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
                Step::ToldOfKill => {
                    inference.told_of_kill(now_ns);
                    by_word += 1;
                }
                Step::Looked => inference.looked(now_ns),
                Step::Ends { pid, end } => {
                    if suspects.iter().all(|suspect| suspect.known.key.pid != pid) {
                        let alive_ns = Some(now_ns - 10 * MS);
                        suspects.push(Suspect { end, alive_ns, ..left(pid, sizes[pid as usize], now_ns) });
                    }
                }
                Step::Judged => {
                    let (accused, lost) = inference.judge(untold(&suspects, &told), |_| 0, now_ns);
                    unnamed += lost;
                    for accused in accused {
                        let suspect = &accused.suspect;
                        prop_assert!(suspect.known.gone_at_boot_ns.is_some(), "it lives: {suspect:?}");
                        prop_assert!(suspect.end != Some(End::Other), "it ended otherwise: {suspect:?}");
                        prop_assert!(told.insert(suspect.known.key), "twice: {suspect:?}");
                        match accused.confidence {
                            Confidence::Inferred => inferred += 1,
                            _ => possible += 1,
                        }
                    }
                }
            }
            prop_assert!(inferred + unnamed <= counted, "{inferred} and {unnamed} of {counted}");
            prop_assert!(possible <= by_word * MOST_POSSIBLE, "{possible} of {by_word}");
        }
        // In the end each kill that was counted has a name or is told to have none.
        inference.looked(now_ns);
        let (accused, lost) = inference.judge(untold(&suspects, &told), |_| 0, now_ns + SLOW_DEATH_NS + MS);
        let last = accused.iter().filter(|accused| accused.confidence == Confidence::Inferred).count() as u64;
        prop_assert_eq!(inferred + last + unnamed + lost, counted);
        prop_assert!(!inference.is_open());
    }
}

#[test]
fn before_everybody_was_looked_at_only_one_as_large_as_those_who_live_is_named() {
    let listed = || {
        let mut inference = Inference::default();
        inference.counted(kills(1, None), 9 * SECOND, 10 * SECOND);
        inference.listed(10 * SECOND + 1);
        inference
    };
    let named = |inference: &mut Inference, suspect: Suspect, spared_bytes, now_ns| {
        inference.judge(vec![suspect], |_| spared_bytes, now_ns).0.len()
    };
    // Young when it was last seen: its size says little, but everybody has not been read yet.
    let young =
        |rss_bytes| Suspect { grown_ns: 9 * SECOND, alive_ns: Some(9 * SECOND), ..left(1, rss_bytes, 10 * SECOND) };
    assert_eq!(named(&mut listed(), young(100), 50, IN_A_WHILE), 1, "large");
    assert_eq!(named(&mut listed(), killed(young(10)), 50, AT_ONCE), 1, "seen to be killed");
    let mut inference = listed();
    assert_eq!(named(&mut inference, young(10), 50, IN_A_WHILE), 0, "a larger one lives");
    inference.looked(10 * SECOND + 2);
    assert_eq!(named(&mut inference, young(10), 50, IN_A_WHILE), 1, "nobody else turned up");
}

#[test]
fn where_somebody_kills_the_rest_the_first_to_leave_is_the_victim() {
    let gone = left(7, 21, 10 * SECOND - MS);
    let dying = |pid, rss_bytes| {
        let suspect = killed(left(pid, rss_bytes, 10 * SECOND + 5 * MS));
        Suspect { end_ns: Some(10 * SECOND - MS), ..suspect }
    };
    let suspects = [gone.clone(), dying(8, 20), dying(9, 17)];
    assert_eq!(verdict(&mut case(1), &suspects, IN_A_WHILE), (vec![7], 0), "gone while the others were dying");
    // A small one that left early is not it, and one that was killed alone is.
    let suspects = [left(7, 9, 10 * SECOND - MS), dying(8, 20), dying(9, 17)];
    assert_eq!(verdict(&mut case(1), &suspects, IN_A_WHILE), (vec![8], 0));
    assert_eq!(verdict(&mut case(1), &[gone, dying(8, 20)], IN_A_WHILE), (vec![8], 0));
}

#[test]
fn where_some_are_hidden_only_one_that_must_be_the_victim_is_named() {
    let cgroup = CgroupFacts {
        path: "/a".into(),
        version: 2,
        limit_bytes: Some(100),
        usage_bytes: None,
        oom_kill_count: Some(1),
    };
    let named = |suspect: Suspect| {
        let mut inference = Inference::default();
        inference.view_is_partial();
        inference.counted(kills(1, Some(cgroup.clone())), 9 * SECOND, 10 * SECOND);
        inference.looked(10 * SECOND);
        let in_time = verdict(&mut inference, std::slice::from_ref(&suspect), IN_A_WHILE).0;
        (in_time, verdict(&mut inference, &[suspect], LATE).1)
    };
    assert_eq!(named(left(7, 50, 10 * SECOND)), (vec![], 1), "a hidden one may have had the other half");
    assert_eq!(named(left(7, 51, 10 * SECOND)), (vec![7], 0));
    assert_eq!(named(killed(left(7, 1, 10 * SECOND))), (vec![7], 0));
}

#[test]
fn one_that_the_kernel_was_told_to_prefer_is_not_too_small_where_the_limit_is_not_known() {
    let small = |oom_score_adj| {
        let mut small = Suspect { alive_ns: Some(10 * SECOND), grown_ns: SECOND, ..left(7, 8, 10 * SECOND) };
        small.known.oom_score_adj = oom_score_adj;
        case(1).judge(vec![small], |_| 16, IN_A_WHILE).0.len()
    };
    assert_eq!((small(1000), small(0)), (1, 0));
}
