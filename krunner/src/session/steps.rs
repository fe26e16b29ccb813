//! The steps of a session: those that wait and the one that runs.
//!
//! ```text
//!                              next step               program ended
//!  Preparing ──prepared──▶ Idle ─────────▶ Running ────────────────────▶ AwaitingReports
//!                           ▲                                                   │
//!                           └── OOM kills reported, or REPORTS_TIMEOUT is over ─┘
//! ```
//!
//! The agent gets a step's `finished` when it leaves the last state. No I/O: time is a parameter.

use std::time::Duration;

use tokio::time::Instant;

use super::step_queue::{NextWork, PushResult, StepQueue};
use crate::process::Control;
use crate::transport::ReplySender;
use crate::wire::{Reply, Step, StepKind};

/// How long the reply to a step waits for reports of OOM kills before its end. The monitor answers within one second.
const REPORTS_TIMEOUT: Duration = Duration::from_secs(2);

/// Text of steps that is worth returning to the kernel. It lies scattered over the heap, so that freeing it does not.
const RETURNED_BYTES: usize = 1024 * 1024;

/// What the session is doing with steps.
enum StepState {
    /// The runtime is initialized and the bootstrap script runs; steps wait.
    Preparing(Control),
    Idle,
    Running(Control),
    /// The program ended. The reply waits for the reports of all OOM kills before that.
    AwaitingReports {
        control: Control,
        exit_code: i32,
        /// The monitor has reported all kills up to the end of the step.
        is_settled: bool,
        deadline: Instant,
    },
}

/// A step to run.
#[derive(Debug)]
pub(super) struct StartedStep {
    pub(super) step: Step,
    pub(super) number: u64,
}

/// A step that is over.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FinishedStep {
    pub(super) number: u64,
    pub(super) kind: StepKind,
    pub(super) exit_code: i32,
    /// It was a `code` that found nothing to wait for, so its `finished` needs no spacing.
    pub(super) is_sole_code: bool,
}

impl FinishedStep {
    /// Sends the reply to the step.
    pub(super) fn answer(&self, replies: &ReplySender) {
        let finished = Reply::Finished { kind: self.kind, exit_code: self.exit_code };
        if self.is_sole_code { replies.answer_unspaced(finished) } else { replies.answer(finished) }
    }
}

/// What comes next, once no step runs.
pub(super) enum NextStep {
    /// Run it, with this control.
    Run(StartedStep, Control),
    /// Answer without running it.
    Answer { kind: StepKind, exit_code: i32 },
}

/// The queue of steps and the state of the current one.
pub(super) struct Steps {
    queue: StepQueue,
    state: StepState,
    /// The number of the current step, which identifies events of earlier steps.
    number: u64,
}

impl Steps {
    /// Steps of a session that is being prepared; `preparation` controls its bootstrap script.
    pub(super) fn new(preparation: Control) -> Self {
        Self { queue: StepQueue::default(), state: StepState::Preparing(preparation), number: 0 }
    }

    /// Queues a step.
    pub(super) fn push(&mut self, step: Step) -> PushResult {
        self.queue.push(step)
    }

    /// The preparation is complete.
    pub(super) fn prepared(&mut self) {
        if matches!(self.state, StepState::Preparing(_)) {
            self.state = StepState::Idle;
        }
    }

    /// Whether [`Self::next`] has a step.
    pub(super) fn has_next(&self) -> bool {
        matches!(self.state, StepState::Idle) && !self.queue.is_idle()
    }

    /// The next step, unless the session is being prepared or a step is not over.
    pub(super) fn next(&mut self) -> Option<NextStep> {
        if !matches!(self.state, StepState::Idle) {
            return None;
        }
        Some(match self.queue.next()? {
            NextWork::Answer { kind, exit_code } => NextStep::Answer { kind, exit_code },
            NextWork::Run(step) => {
                let control = Control::new();
                self.state = StepState::Running(control.clone());
                NextStep::Run(StartedStep { step, number: self.number }, control)
            }
        })
    }

    /// The program of the step ended. Its reports have until [`Self::reports_deadline`].
    pub(super) fn program_ended(&mut self, exit_code: i32, now: Instant) {
        let state = std::mem::replace(&mut self.state, StepState::Idle);
        self.state = match state {
            StepState::Running(control) => {
                StepState::AwaitingReports { control, exit_code, is_settled: false, deadline: now + REPORTS_TIMEOUT }
            }
            other => other,
        };
    }

    /// The monitor has reported all kills before the end of step `number`.
    pub(super) fn reports_settled(&mut self, number: u64) {
        if let StepState::AwaitingReports { is_settled, .. } = &mut self.state
            && number == self.number
        {
            *is_settled = true;
        }
    }

    /// Whether the step waits for nothing but its reply.
    pub(super) fn is_settled(&self) -> bool {
        matches!(self.state, StepState::AwaitingReports { is_settled: true, .. })
    }

    /// Whether the program ended and reports are awaited.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, StepState::AwaitingReports { .. })
    }

    /// Ends the step that awaits reports; `None` if none does.
    pub(super) fn finish(&mut self) -> Option<FinishedStep> {
        let StepState::AwaitingReports { exit_code, .. } = self.state else { return None };
        let number = self.number;
        self.state = StepState::Idle;
        self.number += 1;
        let (kind, is_sole_code) = self.queue.finished(exit_code)?;
        Some(FinishedStep { number, kind, exit_code, is_sole_code })
    }

    /// The handle to the step or the bootstrap script.
    pub(super) fn control(&self) -> Option<&Control> {
        match &self.state {
            StepState::Idle => None,
            StepState::Preparing(control)
            | StepState::Running(control)
            | StepState::AwaitingReports { control, .. } => Some(control),
        }
    }

    /// When to stop waiting for the reports of OOM kills.
    pub(super) fn reports_deadline(&self) -> Option<Instant> {
        match self.state {
            StepState::AwaitingReports { deadline, .. } => Some(deadline),
            StepState::Idle | StepState::Preparing(_) | StepState::Running(_) => None,
        }
    }

    /// The number of the current step.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Whether the agent waits for a step, which runs or is queued.
    pub(super) fn is_attached(&self) -> bool {
        !self.queue.is_idle()
    }

    /// Whether the last step is over and much memory was freed since the last call.
    pub(super) fn freed_memory(&mut self) -> bool {
        self.queue.is_idle() && self.queue.take_peak() >= RETURNED_BYTES
    }

    /// Takes the steps that wait, which will not run.
    pub(super) fn take_waiting(&mut self) -> Vec<StepKind> {
        self.queue.take_waiting()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(kind: StepKind) -> Step {
        Step { kind, text: "x".into() }
    }

    fn ready() -> Steps {
        let mut steps = Steps::new(Control::new());
        steps.prepared();
        steps
    }

    #[test]
    fn steps_wait_for_the_preparation() {
        let mut steps = Steps::new(Control::new());
        assert_eq!(steps.push(step(StepKind::Exec)), PushResult::Queued);
        assert!(steps.next().is_none() && steps.control().is_some());
        steps.prepared();
        assert!(matches!(steps.next(), Some(NextStep::Run(StartedStep { number: 0, .. }, _))));
        assert!(steps.next().is_none(), "one at a time");
    }

    #[test]
    fn reply_waits_for_the_reports_of_its_own_step() {
        let now = Instant::now();
        let mut steps = ready();
        for _ in 0..2 {
            assert_eq!(steps.push(step(StepKind::Exec)), PushResult::Queued);
        }
        assert!(steps.next().is_some());
        assert!(!steps.has_ended() && steps.finish().is_none());
        steps.program_ended(3, now);
        assert_eq!(steps.reports_deadline(), Some(now + REPORTS_TIMEOUT));
        steps.reports_settled(7);
        assert!(!steps.is_settled(), "of another step");
        steps.reports_settled(0);
        assert!(steps.is_settled());
        let finished = FinishedStep { number: 0, kind: StepKind::Exec, exit_code: 3, is_sole_code: false };
        assert_eq!((steps.finish(), steps.finish()), (Some(finished), None));
        assert!(matches!(steps.next(), Some(NextStep::Run(StartedStep { number: 1, .. }, _))));
    }

    #[test]
    fn only_a_code_that_finds_nothing_needs_no_spacing() {
        let mut steps = ready();
        let mut sole = Vec::new();
        for kinds in [&[StepKind::Code][..], &[StepKind::Exec], &[StepKind::Code, StepKind::Code]] {
            for kind in kinds {
                assert_eq!(steps.push(step(*kind)), PushResult::Queued);
            }
            while steps.next().is_some() {
                steps.program_ended(0, Instant::now());
                sole.extend(steps.finish().map(|finished| finished.is_sole_code));
            }
        }
        assert_eq!(sole, [true, false, true, false]);
    }
}
