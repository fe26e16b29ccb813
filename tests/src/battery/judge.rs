//! The rules by which a monitor is judged. Pure.
//!
//! The truth is who was killed for memory, as the scene tells by wait statuses and by what it set up, and how far the
//! kernel's counter (`oom_kill`) grew. The kernel counts those that it chose; it does not count those that go with a chosen
//! one because they share its memory. So
//!
//! - **with BPF** all victims are due, and nobody else, each once. As many as the kernel counted are `confirmed`, the
//!   others `co-victim`. Which of two sharers of one memory is the chosen one is the kernel's choice: both are fair.
//! - **without** as many are due as the kernel counted, all `inferred`. Any victim is a right answer, the sharer of the
//!   memory as well. More reports than the counter grew are a fault of their own, even right ones.
//! - Where nobody was killed for memory (`kill -9`, bystanders, another container's kill) a single report is a fault; one
//!   that comes with the sentinel's kill and names somebody else in its place is a wrong one.
//! - With `memory.oom.group` every member is counted and marked, the one that started the others too: one of each group is
//!   `confirmed`, which is the first in the kernel's log, and the others are told of as its members. The chosen one is counted
//!   twice when it is alive still as its group's turn comes.
//! - A pid that is used again names a victim only together with its name or arguments.
//! - After each scene there is a kill more, the sentinel: once that is told, all that was to come has come. It counts
//!   only when it was not told: as one that was due and missed, and somebody who was named in its place as a wrong one.
//! - Without BPF a kill may be told of without a name (`oom_kills_unattributed`): that is a miss.
//!
//! A delay is the time from a kill to a report. The earliest kill goes with the earliest report: where kills are told out
//! of order that is the shortest of all ways to pair them, and where one was missed the later ones look slow.

use std::collections::BTreeMap;
use std::time::Instant;

use super::kernel_log::Memory;
use super::outcome::{Means, Score};

/// Somebody whom the kernel killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Victim {
    pub(super) pid: u32,
    /// What is in its name or arguments, where the pid is not enough.
    pub(super) mark: Option<&'static str>,
}

/// What happened in a scene.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Truth {
    pub(super) victims: Vec<Victim>,
    /// They died along with those, of another SIGKILL: without BPF nobody can tell the difference.
    pub(super) died_along: Vec<Victim>,
    /// How many of the victims the kernel chose, and counted.
    pub(super) chosen: u64,
    /// So many groups died as a whole.
    pub(super) groups: u64,
}

impl Truth {
    /// These were killed for memory.
    pub(super) fn killed(pids: impl IntoIterator<Item = u32>) -> Self {
        Self::of(pids.into_iter().map(|pid| Victim { pid, mark: None }).collect())
    }

    /// These were, and each was chosen.
    pub(super) fn of(victims: Vec<Victim>) -> Self {
        Self { chosen: victims.len() as u64, victims, died_along: Vec::new(), groups: 0 }
    }

    /// Whom a monitor of these means may name.
    fn fair(&self, means: Means) -> Vec<Victim> {
        let died_along = if means == Means::Fallback { &self.died_along[..] } else { &[] };
        [&self.victims[..], died_along].concat()
    }

    /// Whether the kernel's counter may have grown by so much.
    pub(super) fn agrees_with(&self, counted: u64) -> bool {
        (self.chosen..=self.chosen + self.groups).contains(&counted)
    }

    /// Nobody was.
    pub(super) fn nobody() -> Self {
        Self::default()
    }
}

/// A report as it was heard.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) pid: u32,
    /// Its name and arguments.
    pub(super) text: String,
    pub(super) confidence: String,
    pub(super) heard: Instant,
    /// What the victim had, if it is known.
    pub(super) memory: Option<Memory>,
    /// The path of its memory cgroup.
    pub(super) cgroup: Option<String>,
}

/// Whether a monitor of these means owes so many reports.
pub(super) fn due(means: Means, truth: &Truth, counted: u64) -> u64 {
    let victims = truth.fair(means).len() as u64;
    match means {
        Means::Bpf => victims,
        Means::Fallback => victims.min(counted),
    }
}

/// Scores what was told of a scene. `kills` are the times at which the kernel's counter grew, one for each kill.
pub(super) fn judge(
    means: Means,
    truth: &Truth,
    counted: u64,
    told: &[Told],
    kills: &[Instant],
    is_sentinel_told: bool,
) -> Score {
    let sentinel = u64::from(!is_sentinel_told);
    let due = due(means, truth, counted) + sentinel;
    let (right, open) = right(truth.fair(means), told);
    let mut confidence = BTreeMap::new();
    for report in told {
        *confidence.entry(report.confidence.clone()).or_default() += 1;
    }
    let told_count = told.len() as u64;
    let mut score = Score {
        victims: truth.victims.len() as u64,
        counted,
        due,
        told: told_count,
        right,
        missed: due.saturating_sub(right),
        wrong: told_count - right,
        confidence,
        delays_ms: delays_ms(told, kills),
        problems: Vec::new(),
    };
    score.problems = problems(means, &score, truth.groups, sentinel);
    if means == Means::Bpf && !open.is_empty() {
        score.problems.push(format!("nothing was told of {open:?}"));
    }
    score
}

/// How many of the victims were named, and the pids of the others; a victim that is named twice was named once.
fn right(mut open: Vec<Victim>, told: &[Told]) -> (u64, Vec<u32>) {
    let mut right = 0;
    for report in told {
        let is_it = |victim: &Victim| {
            victim.pid == report.pid && victim.mark.is_none_or(|mark| report.text.split(' ').any(|word| word == mark))
        };
        if let Some(index) = open.iter().position(is_it) {
            open.swap_remove(index);
            right += 1;
        }
    }
    (right, open.iter().map(|victim| victim.pid).collect())
}

fn problems(means: Means, score: &Score, groups: u64, sentinel: u64) -> Vec<String> {
    let mut problems = Vec::new();
    let sure = |name: &str| score.confidence.get(name).copied().unwrap_or(0);
    match means {
        Means::Bpf => {
            if score.missed > 0 || score.wrong > 0 {
                let sentinel = if sentinel > 0 { ", the sentinel among them" } else { "" };
                problems.push(format!("{} missed{sentinel}, {} wrong", score.missed, score.wrong));
            }
            let confirmed = if groups > 0 { groups } else { score.counted };
            let with = score.victims.saturating_sub(confirmed);
            if (sure("confirmed"), sure("co-victim")) != (confirmed, with) {
                problems.push(format!("{confirmed} confirmed and {with} co-victims are due: {:?}", score.confidence));
            }
        }
        Means::Fallback => {
            if score.told > score.counted + sentinel {
                problems.push(format!("{} told of, and the kernel counts {}", score.told, score.counted));
            }
            if sure("inferred") != score.told {
                problems.push(format!("all should be inferred: {:?}", score.confidence));
            }
        }
    }
    problems
}

fn delays_ms(told: &[Told], kills: &[Instant]) -> Vec<f64> {
    let mut heard: Vec<_> = told.iter().map(|report| report.heard).collect();
    let mut kills = kills.to_vec();
    heard.sort();
    kills.sort();
    let pairs = heard.iter().zip(&kills);
    pairs.map(|(heard, kill)| heard.saturating_duration_since(*kill).as_secs_f64() * 1e3).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn told(pid: u32, text: &str, confidence: &str) -> Told {
        let (text, confidence) = (text.into(), confidence.into());
        Told { pid, text, confidence, heard: Instant::now(), memory: None, cgroup: None }
    }

    #[test]
    fn every_victim_and_nobody_else() {
        let truth = Truth::killed([7, 8]);
        let both = [told(8, "", "confirmed"), told(7, "", "confirmed")];
        let score = judge(Means::Bpf, &truth, 2, &both, &[], true);
        assert_eq!((score.right, score.missed, score.wrong, &score.problems[..]), (2, 0, 0, &[][..]));

        let score = judge(Means::Bpf, &truth, 2, &[told(8, "", "confirmed"), told(9, "", "confirmed")], &[], true);
        assert_eq!((score.right, score.missed, score.wrong), (1, 1, 1));
        assert!(!score.problems.is_empty());
    }

    #[test]
    fn a_victim_told_twice_is_wrong_once() {
        let score =
            judge(Means::Bpf, &Truth::killed([7]), 1, &[told(7, "", "confirmed"), told(7, "", "confirmed")], &[], true);
        assert_eq!((score.right, score.missed, score.wrong), (1, 0, 1));
    }

    #[test]
    fn a_sharer_is_a_co_victim_with_bpf_and_a_fair_answer_without() {
        let truth = Truth::killed([7, 8]);
        let both = [told(8, "", "confirmed"), told(7, "", "co-victim")];
        assert_eq!(judge(Means::Bpf, &truth, 1, &both, &[], true).problems, [""; 0]);
        let both = both.map(|report| Told { confidence: "confirmed".into(), ..report });
        assert_eq!(judge(Means::Bpf, &truth, 1, &both, &[], true).problems.len(), 1);

        let score = judge(Means::Fallback, &truth, 1, &[told(8, "", "inferred")], &[], true);
        assert_eq!((score.due, score.right, score.missed, score.problems.len()), (1, 1, 0, 0));
        let both = both.map(|report| Told { confidence: "inferred".into(), ..report });
        let score = judge(Means::Fallback, &truth, 1, &both, &[], true);
        assert_eq!((score.right, score.wrong, score.problems.len()), (2, 0, 1), "more than the counter grew");
    }

    #[test]
    fn of_a_group_one_is_confirmed() {
        let truth = Truth { groups: 1, ..Truth::killed([7, 8]) };
        let told = [told(8, "", "confirmed"), told(7, "", "co-victim")];
        assert_eq!(judge(Means::Bpf, &truth, 2, &told, &[], true).problems, [""; 0]);
        for confidence in ["co-victim", "confirmed"] {
            let told = told.clone().map(|report| Told { confidence: confidence.into(), ..report });
            assert_eq!(judge(Means::Bpf, &truth, 2, &told, &[], true).problems.len(), 1, "all {confidence}");
        }
    }

    #[test]
    fn a_pid_used_again_needs_its_mark() {
        let victims = ["second", "third"].map(|mark| Victim { pid: 7, mark: Some(mark) }).to_vec();
        let truth = Truth::of(victims);
        let score = judge(
            Means::Bpf,
            &truth,
            2,
            &[told(7, "second second eat", "confirmed"), told(7, "early eat", "confirmed")],
            &[],
            true,
        );
        assert_eq!((score.right, score.missed, score.wrong), (1, 1, 1));
    }

    #[test]
    fn one_report_where_nobody_was_killed_is_a_fault() {
        let score = judge(Means::Fallback, &Truth::nobody(), 0, &[told(7, "", "inferred")], &[], true);
        assert_eq!((score.due, score.wrong, score.problems.len()), (0, 1, 1));
    }

    #[test]
    fn a_sentinel_that_is_not_told_is_a_miss() {
        let score = judge(Means::Fallback, &Truth::nobody(), 0, &[told(7, "", "inferred")], &[], false);
        assert_eq!((score.due, score.missed, score.wrong, score.problems.len()), (1, 1, 1, 0));
        let score = judge(Means::Bpf, &Truth::nobody(), 0, &[], &[], false);
        assert_eq!(score.problems, ["1 missed, the sentinel among them, 0 wrong"]);
    }

    #[test]
    fn delays_pair_the_earliest_with_the_earliest() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let report = |ms| Told { heard: at(ms), ..told(1, "", "confirmed") };
        let delays = delays_ms(&[report(30), report(12)], &[at(10), at(20)]);
        assert_eq!(delays.iter().map(|ms| ms.round()).collect::<Vec<_>>(), [2.0, 10.0]);
    }
}
