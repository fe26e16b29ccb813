//! The contents of a recording. Plain values.

use serde::{Deserialize, Serialize};

use crate::monitor::attribution::memory_throttled::MemoryThrottled;
use crate::monitor::attribution::oom_report::OomReport;
use crate::monitor::model::MemorySample;
use crate::monitor::model::time::utc;

/// Identifies the recorded process. Written once at the start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecordingHeader {
    /// The kernel's boot ID (`/proc/sys/kernel/random/boot_id`, random(4)).
    pub boot_id: String,
    /// PID of the recorded process in its own PID namespace.
    pub pid: u32,
    /// Inode number of that PID namespace, from `/proc/self/ns/pid` (namespaces(7)).
    pub pid_namespace: u64,
    /// Start time of the process since boot, in ticks of 10 ms.
    pub start_ticks: u64,
    /// When the recording began, in nanoseconds since boot.
    pub at_boot_ns: u64,
    /// When the recording began, in nanoseconds since 1970.
    pub unix_ns: u64,
    /// Version of krunner.
    pub krunner: String,
    /// The agent's ID of the container.
    pub kernel_id: Option<String>,
    /// Host name of the container.
    pub hostname: String,
    /// Path of the memory cgroup.
    pub cgroup: Option<String>,
    /// The kernel's ID of that cgroup.
    pub cgroup_id: Option<u64>,
    /// The cgroup's OOM kill counter at the start.
    pub oom_kill_count: Option<u64>,
    /// Whether an OOM kill may kill the whole cgroup, including the runner (`memory.oom.group`).
    pub kills_groups: bool,
    /// Included in all checksums, so that old records in the same blocks are not mistaken for records of this recording.
    pub nonce: u64,
}

/// One entry of the flight recorder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Record {
    /// A memory sample.
    Sample(MemorySample),
    /// A step started.
    StepBegun {
        /// Number of the step in its session.
        number: u64,
        /// The op: `exec`, `code`, ...
        kind: String,
        /// Its command line or code, truncated.
        text: String,
    },
    /// A step ended.
    StepEnded {
        /// Number of the step.
        number: u64,
        /// The exit code that the agent receives.
        exit_code: i32,
    },
    /// An OOM kill was reported: the first lines of the report.
    Kill {
        /// Text of the report, truncated.
        text: String,
        /// Number of processes killed.
        processes: u64,
    },
    /// The kernel slowed programs down because memory was short: the report's text, truncated.
    Throttled {
        /// Text of the report, truncated.
        text: String,
    },
    /// The process's own cgroup counted OOM kills.
    OomKills {
        /// Value of the counter.
        count: u64,
    },
    /// The runner is shutting down.
    Stopping {
        /// Why it shuts down.
        reason: String,
    },
    /// The runner shut down cleanly. The last record.
    Goodbye {
        /// Why it shut down.
        reason: String,
    },
}

impl Record {
    /// Longer texts are truncated.
    const MAX_TEXT_BYTES: usize = 400;

    /// The record of a started step.
    #[must_use]
    pub(crate) fn step_begun(number: u64, kind: &str, text: &str) -> Self {
        Self::StepBegun { number, kind: kind.to_owned(), text: cut(text, Self::MAX_TEXT_BYTES).to_owned() }
    }

    /// The record of a reported OOM kill.
    #[must_use]
    pub(crate) fn kill(report: &OomReport) -> Self {
        let text = format!("{} {}", utc(report.time), report.victim.process);
        let processes = 1 + report.members.len() + report.members_left_out;
        Self::Kill { text: cut(&text, Self::MAX_TEXT_BYTES).to_owned(), processes: processes as u64 }
    }

    /// The record of a slow-down.
    #[must_use]
    pub(crate) fn throttled(report: &MemoryThrottled) -> Self {
        let text = report.to_string();
        Self::Throttled { text: cut(text.lines().next().unwrap_or_default(), Self::MAX_TEXT_BYTES).to_owned() }
    }

    /// Drops a part to save space; `false` if nothing is left to drop.
    pub(super) fn shrink(&mut self) -> bool {
        match self {
            Self::Sample(sample) => sample.processes.pop().is_some(),
            Self::StepBegun { text, .. } | Self::Kill { text, .. } | Self::Throttled { text } => halve(text),
            Self::Stopping { reason } | Self::Goodbye { reason } => halve(reason),
            Self::StepEnded { .. } | Self::OomKills { .. } => false,
        }
    }
}

/// Truncates at a character boundary.
fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

fn halve(text: &mut String) -> bool {
    let kept = cut(text, text.len() / 2).len();
    let is_shorter = kept < text.len();
    text.truncate(kept);
    is_shorter
}
