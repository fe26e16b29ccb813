//! The rules by which a monitor is scored. Pure.
//!
//! The ground truth has two parts: the OOM victims, which the scenario knows from wait statuses and from its own setup, and the
//! increase of the kernel's counter (`oom_kill`). The kernel counts the processes that it chose. It does not count processes
//! that die with a chosen one because they share its memory. Therefore:
//!
//! - **With BPF** each victim must be reported exactly once, and no other process. As many as the kernel counted are
//!   `confirmed`, the others are `co-victim`. When two processes share memory, either may be the chosen one.
//! - **Without BPF** as many reports are expected as the kernel counted, all `inferred`. Any victim is a correct answer,
//!   including one that shares the memory or died with a group of another SIGKILL. More reports than the counter's increase are an
//!   error even if they are correct.
//! - If nothing was OOM-killed (`kill -9`, bystanders, another container's kill) any report is an error. A report that arrives
//!   with the marker's kill and names another process in its place is wrong.
//! - With `memory.oom.group` every member is counted and logged, including the one that started the others. One member of
//!   each group is `confirmed`, the first in the kernel log, and the others are reported as its members. The chosen process is
//!   counted twice if it is still alive when its group is killed.
//! - A reused PID identifies a victim only together with its name or arguments.
//! - Each scenario is followed by one more kill, the marker. Once the marker is reported, every earlier report has arrived. The
//!   marker counts only if it was not reported: as an expected report that was missed. A report that names another process
//!   in its place is wrong.
//! - Without BPF a kill may be reported without a name (`oom_kills_unattributed`). It counts as missed.
//!
//! A delay is the time from a kill to its report. The earliest kill is paired with the earliest report. If reports arrive out
//! of order, no other pairing gives shorter delays; if a report is missing, the later ones look slow.

use std::collections::BTreeMap;
use std::time::Instant;

use super::facts::Fact;
use super::kernel_log::Memory;
use super::limit::ReportedLimit;
use super::outcome::{MonitorMode, Score};

/// A process that the OOM killer killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Victim {
    pub(super) pid: u32,
    /// A word in its name or arguments; set when the PID is not unique.
    pub(super) word: Option<&'static str>,
}

/// The kills that happened in a scenario.
#[derive(Clone, Debug, Default)]
pub(super) struct ActualKills {
    pub(super) victims: Vec<Victim>,
    /// Processes that died with the victims from another SIGKILL. Without BPF they look the same, and naming one is correct.
    pub(super) also_sigkilled: Vec<Victim>,
    /// The number of victims that the kernel chose and counted.
    pub(super) chosen: u64,
    /// The number of cgroups that were killed as a whole.
    pub(super) groups: u64,
    /// What each report with BPF must say.
    pub(super) facts: Vec<Fact>,
}

impl ActualKills {
    pub(super) fn killed(pids: impl IntoIterator<Item = u32>) -> Self {
        Self::of(pids.into_iter().map(|pid| Victim { pid, word: None }).collect())
    }

    /// The kernel chose each of the victims.
    pub(super) fn of(victims: Vec<Victim>) -> Self {
        Self { chosen: victims.len() as u64, victims, ..Self::default() }
    }

    /// The same kills; each report with BPF must also say this.
    pub(super) fn with_facts(self, facts: impl IntoIterator<Item = Fact>) -> Self {
        Self { facts: facts.into_iter().collect(), ..self }
    }

    /// The processes that a monitor in this mode may report.
    fn acceptable(&self, mode: MonitorMode) -> Vec<Victim> {
        let also_sigkilled = if mode == MonitorMode::Fallback { &self.also_sigkilled[..] } else { &[] };
        [&self.victims[..], also_sigkilled].concat()
    }

    /// Whether the kernel's counter can have increased by `counted`.
    pub(super) fn agrees_with(&self, counted: u64) -> bool {
        (self.chosen..=self.chosen + self.groups).contains(&counted)
    }

    pub(super) fn none() -> Self {
        Self::default()
    }
}

/// A victim that a monitor reported.
#[derive(Clone, Debug)]
pub(super) struct ReportedVictim {
    pub(super) pid: u32,
    /// Name and arguments, separated by spaces.
    pub(super) text: String,
    pub(super) confidence: String,
    pub(super) received_at: Instant,
    pub(super) memory: Option<Memory>,
    /// The path of its memory cgroup.
    pub(super) cgroup: Option<String>,
    pub(super) limit: ReportedLimit,
}

/// The number of reports that a monitor in this mode may produce.
pub(super) fn most_reports(mode: MonitorMode, actual: &ActualKills, counted: u64) -> u64 {
    let victims = actual.acceptable(mode).len() as u64;
    match mode {
        MonitorMode::Bpf => victims,
        MonitorMode::Fallback => victims.min(counted),
    }
}

/// Scores the reports of a scenario. `kills` are the times at which the kernel's counter increased, one for each kill.
pub(super) fn score_reports(
    mode: MonitorMode,
    actual: &ActualKills,
    counted: u64,
    reported: &[ReportedVictim],
    kills: &[Instant],
    is_marker_reported: bool,
) -> Score {
    let marker = u64::from(!is_marker_reported);
    let (correct, unreported) = match_victims(actual.acceptable(mode), reported);
    let due = due(mode, actual, counted, &unreported) + marker;
    let mut confidence = BTreeMap::new();
    for report in reported {
        *confidence.entry(report.confidence.clone()).or_default() += 1;
    }
    let reported_count = reported.len() as u64;
    let mut score = Score {
        victims: actual.victims.len() as u64,
        counted,
        due,
        reported: reported_count,
        correct,
        missed: due.saturating_sub(correct),
        wrong: reported_count - correct,
        confidence,
        delays_ms: delays_ms(reported, kills),
        usages_near: reported.iter().filter(|report| report.limit.is_usage_near()).count() as u64,
        problems: Vec::new(),
    };
    score.problems = problems(mode, &score, actual.groups, marker);
    if mode == MonitorMode::Bpf && !unreported.is_empty() {
        score.problems.push(format!("not reported: {unreported:?}"));
    }
    score
}

/// The number of reports that a monitor in this mode must produce. It need not name a process that died of another SIGKILL, whatever
/// the kernel counted: in a group the chosen process may be counted twice.
fn due(mode: MonitorMode, actual: &ActualKills, counted: u64, unreported: &[u32]) -> u64 {
    let is_optional = |victim: &&Victim| mode == MonitorMode::Fallback && unreported.contains(&victim.pid);
    let optional = actual.also_sigkilled.iter().filter(is_optional).count() as u64;
    most_reports(mode, actual, counted).min(actual.acceptable(mode).len() as u64 - optional)
}

/// Returns the number of correct reports and the PIDs of the processes without one. Each matches one report only.
fn match_victims(mut unreported: Vec<Victim>, reported: &[ReportedVictim]) -> (u64, Vec<u32>) {
    let mut correct = 0;
    for report in reported {
        let is_it = |victim: &Victim| {
            victim.pid == report.pid && victim.word.is_none_or(|word| report.text.split(' ').any(|other| other == word))
        };
        if let Some(index) = unreported.iter().position(is_it) {
            unreported.swap_remove(index);
            correct += 1;
        }
    }
    (correct, unreported.iter().map(|victim| victim.pid).collect())
}

fn problems(mode: MonitorMode, score: &Score, groups: u64, marker: u64) -> Vec<String> {
    let mut problems = Vec::new();
    let count_of = |name: &str| score.confidence.get(name).copied().unwrap_or(0);
    match mode {
        MonitorMode::Bpf => {
            if score.missed > 0 || score.wrong > 0 {
                let marker = if marker > 0 { " (including the marker)" } else { "" };
                problems.push(format!("{} missed{marker}, {} wrong", score.missed, score.wrong));
            }
            let confirmed = if groups > 0 { groups } else { score.counted };
            let co_victims = score.victims.saturating_sub(confirmed);
            if (count_of("confirmed"), count_of("co-victim")) != (confirmed, co_victims) {
                problems
                    .push(format!("expected {confirmed} confirmed, {co_victims} co-victims: {:?}", score.confidence));
            }
        }
        MonitorMode::Fallback => {
            if score.reported > score.counted + marker {
                problems.push(format!("{} reports, but the kernel counted {}", score.reported, score.counted));
            }
            if count_of("inferred") != score.reported {
                problems.push(format!("every report should be inferred: {:?}", score.confidence));
            }
        }
    }
    problems
}

fn delays_ms(reported: &[ReportedVictim], kills: &[Instant]) -> Vec<f64> {
    let mut received: Vec<_> = reported.iter().map(|report| report.received_at).collect();
    let mut kills = kills.to_vec();
    received.sort();
    kills.sort();
    let pairs = received.iter().zip(&kills);
    pairs.map(|(received, kill)| received.saturating_duration_since(*kill).as_secs_f64() * 1e3).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn reported(pid: u32, text: &str, confidence: &str) -> ReportedVictim {
        let (text, confidence) = (text.into(), confidence.into());
        ReportedVictim {
            pid,
            text,
            confidence,
            received_at: Instant::now(),
            memory: None,
            cgroup: None,
            limit: ReportedLimit::default(),
        }
    }

    #[test]
    fn every_victim_and_no_other_process() {
        let actual = ActualKills::killed([7, 8]);
        let both = [reported(8, "", "confirmed"), reported(7, "", "confirmed")];
        let score = score_reports(MonitorMode::Bpf, &actual, 2, &both, &[], true);
        assert_eq!((score.correct, score.missed, score.wrong, &score.problems[..]), (2, 0, 0, &[][..]));

        let score = score_reports(
            MonitorMode::Bpf,
            &actual,
            2,
            &[reported(8, "", "confirmed"), reported(9, "", "confirmed")],
            &[],
            true,
        );
        assert_eq!((score.correct, score.missed, score.wrong), (1, 1, 1));
        assert!(!score.problems.is_empty());
    }

    #[test]
    fn a_second_report_of_a_victim_is_wrong() {
        let score = score_reports(
            MonitorMode::Bpf,
            &ActualKills::killed([7]),
            1,
            &[reported(7, "", "confirmed"), reported(7, "", "confirmed")],
            &[],
            true,
        );
        assert_eq!((score.correct, score.missed, score.wrong), (1, 0, 1));
    }

    #[test]
    fn a_memory_sharer_is_a_co_victim_with_bpf_and_correct_without() {
        let actual = ActualKills::killed([7, 8]);
        let both = [reported(8, "", "confirmed"), reported(7, "", "co-victim")];
        assert_eq!(score_reports(MonitorMode::Bpf, &actual, 1, &both, &[], true).problems, [""; 0]);
        let both = both.map(|report| ReportedVictim { confidence: "confirmed".into(), ..report });
        assert_eq!(score_reports(MonitorMode::Bpf, &actual, 1, &both, &[], true).problems.len(), 1);

        let score = score_reports(MonitorMode::Fallback, &actual, 1, &[reported(8, "", "inferred")], &[], true);
        assert_eq!((score.due, score.correct, score.missed, score.problems.len()), (1, 1, 0, 0));
        let both = both.map(|report| ReportedVictim { confidence: "inferred".into(), ..report });
        let score = score_reports(MonitorMode::Fallback, &actual, 1, &both, &[], true);
        assert_eq!((score.correct, score.wrong, score.problems.len()), (2, 0, 1), "more reports than counted kills");
    }

    #[test]
    fn one_member_of_a_group_is_confirmed() {
        let actual = ActualKills { groups: 1, ..ActualKills::killed([7, 8]) };
        let reported = [reported(8, "", "confirmed"), reported(7, "", "co-victim")];
        assert_eq!(score_reports(MonitorMode::Bpf, &actual, 2, &reported, &[], true).problems, [""; 0]);
        for confidence in ["co-victim", "confirmed"] {
            let reported = reported.clone().map(|report| ReportedVictim { confidence: confidence.into(), ..report });
            assert_eq!(
                score_reports(MonitorMode::Bpf, &actual, 2, &reported, &[], true).problems.len(),
                1,
                "all {confidence}"
            );
        }
    }

    #[test]
    fn a_process_that_another_sigkill_ended_may_be_reported_without_bpf() {
        let also_sigkilled = vec![Victim { pid: 9, word: None }];
        let actual = ActualKills { groups: 1, also_sigkilled, ..ActualKills::killed([7, 8]) };
        let score = |pids: &[u32]| {
            let reported: Vec<_> = pids.iter().map(|pid| reported(*pid, "", "inferred")).collect();
            let score = score_reports(MonitorMode::Fallback, &actual, 3, &reported, &[], true);
            (score.due, score.correct, score.missed, score.wrong)
        };
        assert_eq!(score(&[7, 8]), (2, 2, 0, 0), "the chosen process was counted twice");
        assert_eq!(score(&[7, 8, 9]), (3, 3, 0, 0));
        assert_eq!(score(&[7, 9]), (3, 2, 1, 0), "a member of the group is missing");
        assert_eq!(score(&[]), (2, 0, 2, 0));
    }

    #[test]
    fn a_reused_pid_needs_its_word() {
        let victims = ["second", "third"].map(|word| Victim { pid: 7, word: Some(word) }).to_vec();
        let actual = ActualKills::of(victims);
        let score = score_reports(
            MonitorMode::Bpf,
            &actual,
            2,
            &[reported(7, "second second eat", "confirmed"), reported(7, "early eat", "confirmed")],
            &[],
            true,
        );
        assert_eq!((score.correct, score.missed, score.wrong), (1, 1, 1));
    }

    #[test]
    fn any_report_without_a_kill_is_an_error() {
        let score =
            score_reports(MonitorMode::Fallback, &ActualKills::none(), 0, &[reported(7, "", "inferred")], &[], true);
        assert_eq!((score.due, score.wrong, score.problems.len()), (0, 1, 1));
    }

    #[test]
    fn an_unreported_marker_is_a_miss() {
        let score =
            score_reports(MonitorMode::Fallback, &ActualKills::none(), 0, &[reported(7, "", "inferred")], &[], false);
        assert_eq!((score.due, score.missed, score.wrong, score.problems.len()), (1, 1, 1, 0));
        let score = score_reports(MonitorMode::Bpf, &ActualKills::none(), 0, &[], &[], false);
        assert_eq!(score.problems, ["1 missed (including the marker), 0 wrong"]);
    }

    #[test]
    fn delays_pair_kills_and_reports_in_order() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let report = |ms| ReportedVictim { received_at: at(ms), ..reported(1, "", "confirmed") };
        let delays = delays_ms(&[report(30), report(12)], &[at(10), at(20)]);
        assert_eq!(delays.iter().map(|ms| ms.round()).collect::<Vec<_>>(), [2.0, 10.0]);
    }
}
