//! Outcomes as tables for people. Pure.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::outcome::{Finding, Means, Outcome, Score, Totals};

/// A case a line, the means side by side; then the sums, and what cannot be had here.
pub fn table(outcomes: &[Outcome], means: &[Means]) -> String {
    let cases = cases(outcomes.iter());
    let width = widest(&cases);
    let mut text = format!("{:width$}  {:>6} {:>7}", "case", "killed", "counted");
    for means in means {
        let _ = write!(text, "  | {:>8}: told right missed wrong  worst", means.to_string());
    }
    text.push('\n');
    for case in &cases {
        let of = |means: Means| outcomes.iter().find(|outcome| outcome.case == *case && outcome.means == means);
        let score = means.iter().find_map(|means| of(*means).and_then(score));
        let Some(score) = score else { continue };
        let _ = write!(text, "{case:width$}  {:>6} {:>7}", score.victims, score.counted);
        for means in means {
            let cells = of(*means).map_or_else(|| "-".to_owned(), scored);
            let _ = write!(text, "  | {cells:>43}");
        }
        text.push('\n');
    }
    for means in means {
        let Totals { cases, due, told, right, wrong, worst_ms, precision_percent, recall_percent, heard_percent } =
            Totals::of(*means, outcomes);
        let _ = writeln!(
            text,
            "{means}: {cases} cases, {due} reports due, {told} told, {right} right, {wrong} wrong: precision \
             {precision_percent:.1} %, recall {recall_percent:.1} %, heard of {heard_percent:.1} %, slowest {worst_ms:.0} ms"
        );
    }
    text.push_str(&impossible(outcomes.iter()));
    text
}

/// A case a line, the kernels side by side: right ones of those due, and the wrong ones behind a `+`.
pub fn kernels(kernels: &[(String, Vec<Outcome>)]) -> String {
    let cases = cases(kernels.iter().flat_map(|(_, outcomes)| outcomes));
    let width = widest(&cases);
    let mut text = format!("{:width$}", "");
    for (kernel, _) in kernels {
        let _ = write!(text, " | {kernel:^19}");
    }
    let _ = write!(text, "\n{:width$}", "case");
    for _ in kernels {
        let _ = write!(text, " | {:>9} {:>9}", Means::Bpf.to_string(), Means::Fallback.to_string());
    }
    text.push('\n');
    for case in &cases {
        let _ = write!(text, "{case:width$}");
        for (_, outcomes) in kernels {
            let [bpf, fallback] = Means::ALL.map(|means| {
                outcomes.iter().find(|outcome| outcome.case == *case && outcome.means == means).map_or("-".into(), cell)
            });
            let _ = write!(text, " | {bpf:>9} {fallback:>9}");
        }
        text.push('\n');
    }
    text
}

/// Why some cases were not to be had.
pub fn impossible<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> String {
    let reasons = outcomes.filter_map(|outcome| match &outcome.finding {
        Finding::Impossible { reason } => Some((reason, format!("{} ({})", outcome.case, outcome.means))),
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
        |(reason, cases): (&String, Vec<String>)| format!("cannot be had here: {}: {reason}\n", cases.join(", "));
    lines.into_iter().map(line).collect()
}

fn cases<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> Vec<&'a str> {
    let mut seen = BTreeSet::new();
    outcomes.map(|outcome| outcome.case.as_str()).filter(|case| seen.insert(*case)).collect()
}

fn widest(cases: &[&str]) -> usize {
    cases.iter().map(|case| case.len()).max().unwrap_or(0)
}

fn score(outcome: &Outcome) -> Option<&Score> {
    match &outcome.finding {
        Finding::Judged(score) => Some(score),
        _ => None,
    }
}

fn scored(outcome: &Outcome) -> String {
    match &outcome.finding {
        Finding::Judged(score) => {
            let worst = score.worst_ms().map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0} ms"));
            let Score { told, right, missed, wrong, .. } = score.as_ref();
            format!("{told:>14} {right:>5} {missed:>6} {wrong:>5} {worst:>8}")
        }
        Finding::Impossible { .. } => "cannot be had here".to_owned(),
        Finding::Broken { .. } => "BROKEN".to_owned(),
    }
}

fn cell(outcome: &Outcome) -> String {
    match &outcome.finding {
        Finding::Judged(score) => {
            let wrong = if score.wrong > 0 { format!("+{}", score.wrong) } else { String::new() };
            format!("{}/{}{wrong}", score.right, score.due)
        }
        Finding::Impossible { .. } => "n/a".to_owned(),
        Finding::Broken { .. } => "BROKEN".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes() -> Vec<Outcome> {
        let judged = |case: &str, means, told, right| Outcome {
            case: case.into(),
            means,
            finding: Finding::Judged(Box::new(Score {
                victims: 1,
                counted: 1,
                due: 1,
                told,
                right,
                missed: 1 - right,
                wrong: told - right,
                delays_ms: vec![12.4],
                ..Score::default()
            })),
        };
        let finding = Finding::Impossible { reason: "no such thing".into() };
        vec![
            judged("hog", Means::Bpf, 1, 1),
            judged("hog", Means::Fallback, 1, 0),
            Outcome { case: "group".into(), means: Means::Bpf, finding },
        ]
    }

    #[test]
    fn a_line_for_each_case_and_the_sums() {
        let text = table(&outcomes(), &Means::ALL);
        assert!(text.contains("BPF: 1 cases, 1 reports due, 1 told, 1 right, 0 wrong: precision 100.0 %"), "{text}");
        assert!(text.contains("cannot be had here: group (BPF): no such thing"), "{text}");
    }

    #[test]
    fn kernels_stand_side_by_side() {
        let text = kernels(&[("5.10".into(), outcomes()), ("6.1".into(), Vec::new())]);
        let squeezed: Vec<_> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(squeezed[2..], ["hog | 1/1 0/1+1 | - -", "group | n/a - | - -"]);
    }
}
