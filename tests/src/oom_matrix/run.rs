//! Runs the matrix case by case and checks the totals against the required accuracy.

use std::path::PathBuf;

use super::case::{Case, Placement, cases_in};
use super::harness::Harness;
use super::outcome::{CaseResult, MonitorMode, Outcome, Totals};

/// Whether anything else runs on the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// Unrelated processes run here.
    Shared,
    /// A virtual machine of our own: a case may use up all memory. No tracefs is mounted.
    Dedicated,
}

/// What to run, and with which programs.
#[derive(Clone, Debug)]
pub struct MatrixPlan {
    /// The program under test.
    pub krunner: PathBuf,
    /// The helper program.
    pub victim: PathBuf,
    /// One monitor is started for each mode.
    pub modes: Vec<MonitorMode>,
    /// Run only cases whose name contains one of these; all cases if empty.
    pub only: Vec<String>,
    /// Cases that use up all memory run on a dedicated machine only.
    pub machine: Machine,
}

/// Every case in every placement that it runs in. Those of one placement are adjacent, so that they share a harness.
fn placed_cases() -> impl Iterator<Item = (Placement, &'static Case)> {
    Placement::ALL.into_iter().flat_map(|placement| cases_in(placement).map(move |case| (placement, case)))
}

/// The names of all cases, one for each placement.
pub fn names() -> impl Iterator<Item = String> {
    placed_cases().map(|(placement, case)| case.name_in(placement))
}

/// Runs the matrix. Calls `on_outcome` after each case and returns all outcomes.
pub fn run(plan: &MatrixPlan, mut on_outcome: impl FnMut(&Outcome)) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let mut harness: Option<Result<Harness, CaseResult>> = None;
    let mut at = None;
    for (placement, case) in placed_cases() {
        let name = case.name_in(placement);
        if !plan.wants(&name) || plan.is_repetition(placement, case) {
            continue;
        }
        let placement = plan.actual(placement);
        if at != Some(placement) {
            // The old harness ends first: the new one needs its memory slot (see `Cgroup::scratch`).
            let ended = harness.take().and_then(Result::ok).map(Harness::end);
            outcomes.extend(ended.into_iter().flatten().inspect(|outcome| on_outcome(outcome)));
            harness = Some(Harness::start(placement, plan));
            at = Some(placement);
        }
        let found = match harness.as_mut().expect("just made") {
            Ok(harness) => harness.run(&name, case),
            Err(result) => plan.all(&name, result),
        };
        outcomes.extend(found.into_iter().inspect(|outcome| on_outcome(outcome)));
    }
    let ended = harness.and_then(Result::ok).map(Harness::end);
    outcomes.extend(ended.into_iter().flatten().inspect(|outcome| on_outcome(outcome)));
    outcomes
}

impl MatrixPlan {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }

    /// Whether it runs below the monitors as well, on an emulated machine that has no time for both. One case runs in all
    /// placements everywhere.
    fn is_repetition(&self, placement: Placement, case: &Case) -> bool {
        self.machine == Machine::Dedicated && placement == Placement::Container && case.runs_in_both()
    }

    /// A dedicated machine has no tracefs at all, so its cases do not need a harness of their own.
    fn actual(&self, placement: Placement) -> Placement {
        match (placement, self.machine) {
            (Placement::NoTracefs, Machine::Dedicated) => Placement::Top,
            (placement, _) => placement,
        }
    }

    fn all(&self, name: &str, result: &CaseResult) -> Vec<Outcome> {
        let outcome = |mode: &MonitorMode| Outcome { case: name.to_owned(), mode: *mode, result: result.clone() };
        self.modes.iter().map(outcome).collect()
    }
}

/// The part of the counted kills that must be reported without BPF, as in README. A process that lives for less than the time between
/// two scans cannot be named.
pub const FALLBACK_PERCENT: u32 = 95;

/// What the reports of a machine must reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Requirements {
    /// The maximum delay from a kill to its report.
    worst_ms: f64,
}

impl Requirements {
    /// A machine with processors of its own.
    pub const REAL: Self = Self { worst_ms: 500.0 };
    /// An emulated processor, a tenth as fast as those that the monitor's schedule is designed for.
    pub const EMULATED: Self = Self { worst_ms: f64::INFINITY };
}

/// Describes each requirement that this mode failed to meet.
///
/// With BPF no report may be missing or wrong. Without BPF most counted kills must be reported, and 95 % of the reports must be
/// correct. The percentages are taken over all rounds, so a single miss is not listed.
pub fn shortfalls(mode: MonitorMode, outcomes: &[Outcome], required: Requirements) -> Vec<String> {
    const PRECISION_PERCENT: f64 = 95.0;
    let reported_percent = f64::from(if mode == MonitorMode::Fallback { FALLBACK_PERCENT } else { 100 });
    let mut shortfalls = Vec::new();
    for outcome in outcomes.iter().filter(|outcome| outcome.mode == mode) {
        match &outcome.result {
            CaseResult::Scored(score) => {
                shortfalls.extend(score.problems.iter().map(|problem| format!("{}: {problem}", outcome.case)));
            }
            CaseResult::Failed { reason } => shortfalls.push(format!("{}: {reason}", outcome.case)),
            CaseResult::Unavailable { .. } => {}
        }
    }
    let totals = Totals::of(mode, outcomes);
    if totals.reported_percent < reported_percent {
        let actual = totals.reported_percent;
        shortfalls.push(format!("{actual:.1} % of the kills were reported; {reported_percent} % required"));
    }
    if totals.precision_percent < PRECISION_PERCENT {
        let precision = totals.precision_percent;
        shortfalls.push(format!("{precision:.1} % of the reports were correct; {PRECISION_PERCENT} % required"));
    }
    if totals.worst_ms > required.worst_ms {
        let (slowest, limit) = (totals.worst_ms, required.worst_ms);
        shortfalls.push(format!("a report arrived {slowest:.0} ms after its kill; the limit is {limit} ms"));
    }
    shortfalls
}
