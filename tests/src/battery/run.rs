//! The battery from its first case to its last, and the verdict.

use std::path::PathBuf;

use super::case::{CASES, Case};
use super::outcome::{Finding, Means, Outcome, Totals};
use super::stage::{Place, Stage};

/// Whose machine it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// Other people's processes are there.
    Shared,
    /// Ours alone: all its memory may be eaten. No tracefs is mounted.
    Own,
}

/// What is run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The program under test.
    pub krunner: PathBuf,
    /// The helper program.
    pub victim: PathBuf,
    /// Which monitors look on.
    pub means: Vec<Means>,
    /// Cases with one of these in their names; all, if there are none.
    pub only: Vec<String>,
    /// Whose machine it is.
    pub machine: Machine,
}

/// The names of all cases.
pub fn names() -> impl Iterator<Item = &'static str> {
    CASES.iter().map(|case| case.name)
}

/// Runs the battery; each outcome is told as it comes, and all are returned.
pub fn run(plan: &Plan, mut tell: impl FnMut(&Outcome)) -> Vec<Outcome> {
    let wanted = |case: &&Case| plan.only.is_empty() || plan.only.iter().any(|part| case.name.contains(part.as_str()));
    let mut outcomes = Vec::new();
    let mut stage: Option<Result<Stage, Finding>> = None;
    let mut at = None;
    for case in CASES.iter().filter(wanted) {
        let place = plan.place(case);
        if at != Some(place) {
            // First the old one ends: its slot of the machine's memory is wanted.
            let ended = stage.take().and_then(Result::ok).map(Stage::end);
            outcomes.extend(ended.into_iter().flatten().inspect(|outcome| tell(outcome)));
            stage = Some(Stage::start(place, plan));
            at = Some(place);
        }
        let found = match stage.as_mut().expect("just made") {
            Ok(stage) => stage.run(case),
            Err(finding) => plan.all(case, finding),
        };
        outcomes.extend(found.into_iter().inspect(|outcome| tell(outcome)));
    }
    let ended = stage.and_then(Result::ok).map(Stage::end);
    outcomes.extend(ended.into_iter().flatten().inspect(|outcome| tell(outcome)));
    outcomes
}

impl Plan {
    fn place(&self, case: &Case) -> Place {
        match (case.place, self.machine) {
            // There is none anywhere: no stage of its own is needed.
            (Place::NoTracefs, Machine::Own) => Place::Top,
            (place, _) => place,
        }
    }

    fn all(&self, case: &Case, finding: &Finding) -> Vec<Outcome> {
        let outcome = |means: &Means| Outcome { case: case.name.to_owned(), means: *means, finding: finding.clone() };
        self.means.iter().map(outcome).collect()
    }
}

/// From a kill to its report.
const WORST_MS: f64 = 500.0;

/// What a run has to reach for these means; what it missed, in words.
///
/// With BPF nothing may be missed or wrong. Without, every counted kill is told of, and 95 % of what is told is right. The
/// sums are over all rounds, which is why a single miss is not told of by itself. On an emulated processor, a tenth as fast
/// as those that the monitor's pace is made for, 95 % of the counted kills are enough.
pub fn shortfalls(means: Means, outcomes: &[Outcome], machine: Machine) -> Vec<String> {
    const PRECISION_PERCENT: f64 = 95.0;
    let heard_percent = if machine == Machine::Own && means == Means::Fallback { 95.0 } else { 100.0 };
    let mut shortfalls = Vec::new();
    for outcome in outcomes.iter().filter(|outcome| outcome.means == means) {
        match &outcome.finding {
            Finding::Judged(score) => {
                shortfalls.extend(score.problems.iter().map(|problem| format!("{}: {problem}", outcome.case)));
            }
            Finding::Broken { reason } => shortfalls.push(format!("{}: {reason}", outcome.case)),
            Finding::Impossible { .. } => {}
        }
    }
    let totals = Totals::of(means, outcomes);
    if totals.heard_percent < heard_percent {
        let heard = totals.heard_percent;
        shortfalls.push(format!("{heard:.1} % of the kills were told of, and {heard_percent} % should be"));
    }
    if totals.precision_percent < PRECISION_PERCENT {
        let precision = totals.precision_percent;
        shortfalls.push(format!("{precision:.1} % of the reports were right, and {PRECISION_PERCENT} % should be"));
    }
    if machine == Machine::Shared && totals.worst_ms > WORST_MS {
        let slowest = totals.worst_ms;
        shortfalls.push(format!("a report came {slowest:.0} ms after its kill, and {WORST_MS} ms is the most"));
    }
    shortfalls
}
