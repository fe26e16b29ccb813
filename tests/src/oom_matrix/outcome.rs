//! The result of a case for one monitor, as it is printed and as a virtual machine sends it to the host. Plain data.
//!
//! The serialized names are a contract of `cargo xtask oom-matrix --json`, so some differ from the names in the code.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The two ways in which a monitor detects OOM kills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MonitorMode {
    /// `krunner monitor` with eBPF tracing.
    Bpf,
    /// `krunner monitor --no-bpf`, which infers kills.
    Fallback,
}

impl MonitorMode {
    /// Every mode, in the order in which tables show them.
    pub const ALL: [Self; 2] = [Self::Bpf, Self::Fallback];
}

impl fmt::Display for MonitorMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bpf => "BPF",
            Self::Fallback => "fallback",
        })
    }
}

/// A case and its result for one monitor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The case's name.
    pub case: String,
    /// The mode of the monitor that was scored.
    #[serde(rename = "means")]
    pub mode: MonitorMode,
    /// Flattened into the outcome when serialized.
    #[serde(flatten)]
    pub result: CaseResult,
}

/// The result of running a case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum CaseResult {
    /// The case ran and its reports were scored.
    #[serde(rename = "judged")]
    Scored(Box<Score>),
    /// This machine cannot run the case.
    #[serde(rename = "impossible")]
    Unavailable {
        /// What the machine lacks.
        reason: String,
    },
    /// The scenario, the monitor or the harness failed.
    #[serde(rename = "broken")]
    Failed {
        /// The panic message, or the check that failed.
        reason: String,
    },
}

/// How accurately a monitor reported the kills of a case.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Processes that the OOM killer killed, according to the scenario.
    pub victims: u64,
    /// The increase of the kernel's `oom_kill` counter.
    pub counted: u64,
    /// Reports that were expected.
    pub due: u64,
    /// Reports that arrived.
    #[serde(rename = "told")]
    pub reported: u64,
    /// Reports that named a victim. A second report of the same victim is wrong.
    #[serde(rename = "right")]
    pub correct: u64,
    /// Expected reports that did not arrive.
    pub missed: u64,
    /// Reports that named a survivor, or a victim for the second time.
    pub wrong: u64,
    /// The number of reports at each confidence.
    pub confidence: BTreeMap<String, u64>,
    /// From each kill to its report.
    pub delays_ms: Vec<f64>,
    /// Reports whose memory usage at the kill is within 2 % of the limit that was hit.
    pub usages_near: u64,
    /// Rules that the monitor broke.
    pub problems: Vec<String>,
}

impl Score {
    /// The longest delay from a kill to its report.
    pub fn worst_ms(&self) -> Option<f64> {
        self.delays_ms.iter().copied().reduce(f64::max)
    }
}

/// Sums over the scored cases of one mode.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Cases that were scored.
    pub cases: u64,
    /// Reports that were expected.
    pub due: u64,
    /// Reports that arrived.
    #[serde(rename = "told")]
    pub reported: u64,
    /// Reports that named a victim.
    #[serde(rename = "right")]
    pub correct: u64,
    /// Reports that did not.
    pub wrong: u64,
    /// Reports whose memory usage at the kill is within 2 % of the limit that was hit.
    pub usages_near: u64,
    /// The longest delay from a kill to its report.
    pub worst_ms: f64,
    /// `correct / reported`, in percent; 100 without reports.
    pub precision_percent: f64,
    /// `correct / due`, in percent.
    pub recall_percent: f64,
    /// The share of expected reports that arrived, correct or not, in percent.
    #[serde(rename = "heard_percent")]
    pub reported_percent: f64,
}

impl Totals {
    /// Sums the scores of this mode.
    pub fn of(mode: MonitorMode, outcomes: &[Outcome]) -> Self {
        let mut totals = Self::default();
        let mut arrived = 0;
        for outcome in outcomes.iter().filter(|outcome| outcome.mode == mode) {
            let CaseResult::Scored(score) = &outcome.result else { continue };
            totals.cases += 1;
            totals.due += score.due;
            totals.reported += score.reported;
            totals.correct += score.correct;
            totals.wrong += score.wrong;
            totals.usages_near += score.usages_near;
            arrived += score.reported.min(score.due);
            totals.worst_ms = totals.worst_ms.max(score.worst_ms().unwrap_or(0.0));
        }
        totals.precision_percent = percent(totals.correct, totals.reported);
        totals.recall_percent = percent(totals.correct, totals.due);
        totals.reported_percent = percent(arrived, totals.due);
        totals
    }
}

#[expect(clippy::cast_precision_loss, reason = "a percentage of a few hundred reports")]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 100.0 } else { part as f64 * 100.0 / whole as f64 }
}
