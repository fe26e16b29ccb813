//! What a virtual machine with real container engines reports to `cargo xtask vm --node`: one JSON line for each event.

use serde::{Deserialize, Serialize};

/// A line on the second serial port of the machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum NodeEvent {
    /// The tests are running.
    Booted {
        /// The release, as `uname -r` prints it.
        kernel: String,
    },
    /// An engine is up, or its images are there.
    Prepared {
        /// What was prepared.
        what: String,
        /// How long it took.
        seconds: f64,
    },
    /// Output of a program, for people.
    Printed {
        /// The program that printed it.
        title: String,
        /// The output, several lines.
        text: String,
    },
    /// This machine's engine cannot make the container.
    NotTried {
        /// The engine and the container.
        name: String,
        /// What it lacks.
        reason: String,
    },
    /// A container was tried.
    Outcome {
        /// The kills in it and the reports.
        outcome: ContainerOutcome,
    },
    /// Every container was tried.
    Done,
    /// The tests cannot continue.
    Failed {
        /// What failed, with the output of the program.
        reason: String,
    },
}

/// A container with real OOM kills, and the reports of the krunner in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerOutcome {
    /// The engine that created the container.
    pub engine: String,
    /// The recipe or the privileges.
    pub container: String,
    /// The tracer that krunner used.
    pub tracer: String,
    /// Processes that the kernel logged as killed.
    pub kills: u64,
    /// Reports that arrived.
    pub reported: u64,
    /// Reports of a victim.
    pub correct: u64,
    /// Reports of another process.
    pub wrong: u64,
    /// The confidence of the reports, or the cause that a post-mortem found.
    pub confidence: String,
    /// From the start of the container to its removal.
    pub seconds: f64,
    /// Rules that krunner broke; empty if the container passed.
    pub problems: Vec<String>,
}
