//! Formats outcomes as text tables. Pure.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::outcome::{CaseResult, MonitorMode, Outcome, Score, Totals};

/// One line per case with the modes side by side, then the totals and the unavailable cases.
pub fn table(outcomes: &[Outcome], modes: &[MonitorMode]) -> String {
    let cases = cases(outcomes.iter());
    let width = widest_name(&cases);
    let mut text = format!("{:width$}  {:>6} {:>7}", "case", "killed", "counted");
    for mode in modes {
        let _ = write!(text, "  | {:>8}: reports right missed wrong  worst", mode.to_string());
    }
    text.push('\n');
    for case in &cases {
        let of = |mode: MonitorMode| outcomes.iter().find(|outcome| outcome.case == *case && outcome.mode == mode);
        let score = modes.iter().find_map(|mode| of(*mode).and_then(score));
        let Some(score) = score else { continue };
        let _ = write!(text, "{case:width$}  {:>6} {:>7}", score.victims, score.counted);
        for mode in modes {
            let cells = of(*mode).map_or_else(|| "-".to_owned(), scored);
            let _ = write!(text, "  | {cells:>46}");
        }
        text.push('\n');
    }
    for mode in modes {
        let totals = Totals::of(*mode, outcomes);
        let Totals { cases, due, reported, correct, wrong, worst_ms, .. } = totals;
        let Totals { precision_percent, recall_percent, reported_percent, usages_near, .. } = totals;
        let _ = writeln!(
            text,
            "{mode}: {cases} cases, {due} reports expected, {reported} received, {correct} correct, {wrong} wrong: precision \
             {precision_percent:.1} %, recall {recall_percent:.1} %, kills reported {reported_percent:.1} %, slowest \
             {worst_ms:.0} ms, usage at the kill within 2 % of the limit in {usages_near}"
        );
    }
    text.push_str(&unavailable(outcomes.iter()));
    text
}

/// One line per case with the kernels side by side: `correct/expected`, followed by `+wrong`.
pub fn kernels(kernels: &[(String, Vec<Outcome>)]) -> String {
    let cases = cases(kernels.iter().flat_map(|(_, outcomes)| outcomes));
    let width = widest_name(&cases);
    let mut text = format!("{:width$}", "");
    for (kernel, _) in kernels {
        let _ = write!(text, " | {kernel:^19}");
    }
    let _ = write!(text, "\n{:width$}", "case");
    for _ in kernels {
        let _ = write!(text, " | {:>9} {:>9}", MonitorMode::Bpf.to_string(), MonitorMode::Fallback.to_string());
    }
    text.push('\n');
    for case in &cases {
        let _ = write!(text, "{case:width$}");
        for (_, outcomes) in kernels {
            let [bpf, fallback] = MonitorMode::ALL.map(|mode| {
                outcomes.iter().find(|outcome| outcome.case == *case && outcome.mode == mode).map_or("-".into(), cell)
            });
            let _ = write!(text, " | {bpf:>9} {fallback:>9}");
        }
        text.push('\n');
    }
    text
}

/// Lists the cases that could not run, grouped by reason.
pub fn unavailable<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> String {
    let reasons = outcomes.filter_map(|outcome| match &outcome.result {
        CaseResult::Unavailable { reason } => Some((reason, format!("{} ({})", outcome.case, outcome.mode))),
        _ => None,
    });
    let mut lines: Vec<(&String, Vec<String>)> = Vec::new();
    for (reason, case) in reasons {
        match lines.iter_mut().find(|(other, _)| *other == reason) {
            Some((_, cases)) => cases.push(case),
            None => lines.push((reason, vec![case])),
        }
    }
    let line =
        |(reason, cases): (&String, Vec<String>)| format!("not available here: {}: {reason}\n", cases.join(", "));
    lines.into_iter().map(line).collect()
}

fn cases<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> Vec<&'a str> {
    let mut seen = BTreeSet::new();
    outcomes.map(|outcome| outcome.case.as_str()).filter(|case| seen.insert(*case)).collect()
}

fn widest_name(cases: &[&str]) -> usize {
    cases.iter().map(|case| case.len()).max().unwrap_or(0)
}

fn score(outcome: &Outcome) -> Option<&Score> {
    match &outcome.result {
        CaseResult::Scored(score) => Some(score),
        _ => None,
    }
}

fn scored(outcome: &Outcome) -> String {
    match &outcome.result {
        CaseResult::Scored(score) => {
            let worst = score.worst_ms().map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0} ms"));
            let Score { reported, correct, missed, wrong, .. } = score.as_ref();
            format!("{reported:>17} {correct:>5} {missed:>6} {wrong:>5} {worst:>8}")
        }
        CaseResult::Unavailable { .. } => "not available here".to_owned(),
        CaseResult::Failed { .. } => "FAILED".to_owned(),
    }
}

fn cell(outcome: &Outcome) -> String {
    match &outcome.result {
        CaseResult::Scored(score) => {
            let wrong = if score.wrong > 0 { format!("+{}", score.wrong) } else { String::new() };
            format!("{}/{}{wrong}", score.correct, score.due)
        }
        CaseResult::Unavailable { .. } => "n/a".to_owned(),
        CaseResult::Failed { .. } => "FAILED".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes() -> Vec<Outcome> {
        let judged = |case: &str, mode, reported, correct| Outcome {
            case: case.into(),
            mode,
            result: CaseResult::Scored(Box::new(Score {
                victims: 1,
                counted: 1,
                due: 1,
                reported,
                correct,
                missed: 1 - correct,
                wrong: reported - correct,
                delays_ms: vec![12.4],
                ..Score::default()
            })),
        };
        let result = CaseResult::Unavailable { reason: "no such thing".into() };
        vec![
            judged("hog", MonitorMode::Bpf, 1, 1),
            judged("hog", MonitorMode::Fallback, 1, 0),
            Outcome { case: "group".into(), mode: MonitorMode::Bpf, result },
        ]
    }

    #[test]
    fn a_line_for_each_case_and_the_sums() {
        let text = table(&outcomes(), &MonitorMode::ALL);
        assert!(
            text.contains("BPF: 1 cases, 1 reports expected, 1 received, 1 correct, 0 wrong: precision 100.0 %"),
            "{text}"
        );
        assert!(text.contains("not available here: group (BPF): no such thing"), "{text}");
    }

    #[test]
    fn kernels_stand_side_by_side() {
        let text = kernels(&[("5.10".into(), outcomes()), ("6.1".into(), Vec::new())]);
        let squeezed: Vec<_> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(squeezed[2..], ["hog | 1/1 0/1+1 | - -", "group | n/a - | - -"]);
    }
}
