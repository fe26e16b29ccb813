//! What came of a case for one way of watching, as it is printed and as it crosses the wall of a virtual machine. Plain
//! data.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// How a monitor watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Means {
    /// `krunner monitor`.
    Bpf,
    /// `krunner monitor --no-bpf`.
    Fallback,
}

impl Means {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Bpf, Self::Fallback];
}

impl fmt::Display for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bpf => "BPF",
            Self::Fallback => "fallback",
        })
    }
}

/// A case, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The case's name.
    pub case: String,
    /// By which means it was watched.
    pub means: Means,
    /// What came of it.
    #[serde(flatten)]
    pub finding: Finding,
}

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Finding {
    /// It was played and judged.
    Judged(Box<Score>),
    /// It cannot be had on this machine.
    Impossible {
        /// Why.
        reason: String,
    },
    /// The scene, the monitor or the battery itself failed.
    Broken {
        /// How.
        reason: String,
    },
}

/// How a monitor did in a case.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Whom the kernel killed for memory, as the scene knows.
    pub victims: u64,
    /// How far the kernel's own counter grew.
    pub counted: u64,
    /// Reports that were due.
    pub due: u64,
    /// Reports that came.
    pub told: u64,
    /// Reports that named a victim, each victim once.
    pub right: u64,
    /// Due and right, but not told.
    pub missed: u64,
    /// Reports that named somebody else, or somebody twice.
    pub wrong: u64,
    /// Reports by how sure they were.
    pub confidence: BTreeMap<String, u64>,
    /// From each kill to its report.
    pub delays_ms: Vec<f64>,
    /// Rules that were broken.
    pub problems: Vec<String>,
}

impl Score {
    /// The longest that a report took.
    pub fn worst_ms(&self) -> Option<f64> {
        self.delays_ms.iter().copied().reduce(f64::max)
    }
}

/// Sums over cases.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Cases that were judged.
    pub cases: u64,
    /// Reports that were due.
    pub due: u64,
    /// Reports that came.
    pub told: u64,
    /// Reports that were right.
    pub right: u64,
    /// Reports that were wrong.
    pub wrong: u64,
    /// The longest that a report took.
    pub worst_ms: f64,
    /// Right ones among those told, in percent; 100 when nothing was told.
    pub precision_percent: f64,
    /// Right ones among those due, in percent.
    pub recall_percent: f64,
    /// Told, rightly or not, among those due, in percent: of those that were counted, how many were heard of.
    pub heard_percent: f64,
}

impl Totals {
    /// Over all that was judged for these means.
    pub fn of(means: Means, outcomes: &[Outcome]) -> Self {
        let mut totals = Self::default();
        let mut heard = 0;
        for outcome in outcomes.iter().filter(|outcome| outcome.means == means) {
            let Finding::Judged(score) = &outcome.finding else { continue };
            totals.cases += 1;
            totals.due += score.due;
            totals.told += score.told;
            totals.right += score.right;
            totals.wrong += score.wrong;
            heard += score.told.min(score.due);
            totals.worst_ms = totals.worst_ms.max(score.worst_ms().unwrap_or(0.0));
        }
        totals.precision_percent = percent(totals.right, totals.told);
        totals.recall_percent = percent(totals.right, totals.due);
        totals.heard_percent = percent(heard, totals.due);
        totals
    }
}

#[expect(clippy::cast_precision_loss, reason = "a percentage of some hundred reports")]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 100.0 } else { part as f64 * 100.0 / whole as f64 }
}
