//! The state of step execution.

use tokio::time::Instant;

use crate::process::Control;

/// What the session is doing with steps.
///
/// ```text
///  Preparing ──Ready──▶ Idle ──next step──▶ Running ──StepDone──▶ Reporting
///                        ▲                                           │
///                        └── OOM kills reported, or REPORTS_TIMEOUT ─┘
/// ```
pub(super) enum StepState {
    /// The runtime is initialized and the bootstrap script runs; steps wait.
    Preparing(Control),
    Idle,
    Running(Control),
    /// The step finished. Its reply waits for the reports of all OOM kills before that.
    Reporting {
        control: Control,
        exit_code: i32,
        /// The monitor has reported all kills up to the end of the step.
        is_settled: bool,
        deadline: Instant,
    },
}

impl StepState {
    /// The handle to the step or the bootstrap script.
    pub(super) fn control(&self) -> Option<&Control> {
        match self {
            Self::Idle => None,
            Self::Preparing(control) | Self::Running(control) | Self::Reporting { control, .. } => Some(control),
        }
    }

    /// When to stop waiting for the reports of OOM kills.
    pub(super) fn reports_deadline(&self) -> Option<Instant> {
        match self {
            Self::Reporting { deadline, .. } => Some(*deadline),
            Self::Idle | Self::Preparing(_) | Self::Running(_) => None,
        }
    }
}
