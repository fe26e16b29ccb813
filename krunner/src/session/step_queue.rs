//! The queue of steps: they run one at a time in arrival order, and a failed build skips the next `exec`.
//!
//! ```text
//!            push                      next                     finished
//! agent ───────────▶ waiting ───────────────────▶ running ───────────────────▶ (none)
//!                       │ exec after a failed build │ build with a code other than 0:
//!                       └──▶ answered with 127      └ the next exec is not run
//! ```
//!
//! Bounded: a step that does not fit keeps its place, so that its reply is sent in order, but not its text. Pure.

use std::collections::VecDeque;

use crate::wire::{Step, StepKind};

/// Total text of waiting steps: two messages of the largest size, or four of what a client of Backend.AI can send.
const MAX_TEXT_BYTES: usize = 16 * 1024 * 1024;

/// The maximum number of waiting steps with text.
const MAX_STEPS: usize = 4096;

/// The maximum number of entries, including steps without text.
const MAX_ENTRIES: usize = 65_536;

/// The exit code of an `exec` after a failed build.
const BUILD_FAILED: i32 = 127;

/// The exit code of a step that did not fit.
const REJECTED: i32 = -1;

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextWork {
    /// Run the step, then call [`StepQueue::finished`].
    Run(Step),
    /// Answer without running.
    Answer { kind: StepKind, exit_code: i32 },
}

/// The result of pushing a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum PushResult {
    Queued,
    /// The step will be answered with `-1` in order.
    Rejected,
    /// There is no space even for the reply.
    Dropped,
}

#[derive(Debug)]
enum QueueEntry {
    Step {
        step: Step,
        /// A `code` that found nothing to wait for.
        is_sole_code: bool,
    },
    Rejected(StepKind),
}

#[derive(Debug, Default)]
pub(super) struct StepQueue {
    waiting: VecDeque<QueueEntry>,
    steps: usize,
    text_bytes: usize,
    /// The most there was since [`Self::take_peak`].
    peak_text_bytes: usize,
    /// The kind, and whether it is a `code` that found nothing to wait for.
    running: Option<(StepKind, bool)>,
    build_failed: bool,
}

impl StepQueue {
    pub(super) fn push(&mut self, step: Step) -> PushResult {
        if self.waiting.len() >= MAX_ENTRIES {
            return PushResult::Dropped;
        }
        if self.steps >= MAX_STEPS || self.text_bytes + step.text.len() > MAX_TEXT_BYTES {
            self.waiting.push_back(QueueEntry::Rejected(step.kind));
            return PushResult::Rejected;
        }
        self.steps += 1;
        self.text_bytes += step.text.len();
        self.peak_text_bytes = self.peak_text_bytes.max(self.text_bytes);
        let is_sole_code = step.kind == StepKind::Code && self.is_idle();
        self.waiting.push_back(QueueEntry::Step { step, is_sole_code });
        PushResult::Queued
    }

    /// The next work, unless a step is running.
    pub(super) fn next(&mut self) -> Option<NextWork> {
        if self.running.is_some() {
            return None;
        }
        match self.waiting.pop_front()? {
            QueueEntry::Rejected(kind) => {
                match kind {
                    StepKind::Build => self.build_failed = true,
                    StepKind::Exec => self.build_failed = false,
                    StepKind::Clean | StepKind::Code => {}
                }
                Some(NextWork::Answer { kind, exit_code: REJECTED })
            }
            QueueEntry::Step { step, is_sole_code } => {
                self.steps -= 1;
                self.text_bytes -= step.text.len();
                if step.kind == StepKind::Exec && std::mem::take(&mut self.build_failed) {
                    return Some(NextWork::Answer { kind: step.kind, exit_code: BUILD_FAILED });
                }
                self.running = Some((step.kind, is_sole_code));
                Some(NextWork::Run(step))
            }
        }
    }

    /// Marks the running step as finished. Returns its kind, and whether it was a `code` that found nothing to wait for.
    pub(super) fn finished(&mut self, exit_code: i32) -> Option<(StepKind, bool)> {
        let (kind, is_sole_code) = self.running.take()?;
        if kind == StepKind::Build {
            self.build_failed = exit_code != 0;
        }
        Some((kind, is_sole_code))
    }

    /// Takes the waiting steps.
    pub(super) fn take_waiting(&mut self) -> Vec<StepKind> {
        (self.steps, self.text_bytes) = (0, 0);
        let kind = |entry| match entry {
            QueueEntry::Step { step, .. } => step.kind,
            QueueEntry::Rejected(kind) => kind,
        };
        self.waiting.drain(..).map(kind).collect()
    }

    /// The most text that waited since the last call.
    pub(super) fn take_peak(&mut self) -> usize {
        std::mem::replace(&mut self.peak_text_bytes, self.text_bytes)
    }

    /// Whether no step runs or waits.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_none() && self.waiting.is_empty()
    }

    /// Whether a step is running.
    #[cfg(test)]
    fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// The number of waiting steps.
    #[cfg(test)]
    fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn step(kind: StepKind) -> Step {
        Step { kind, text: "x".into() }
    }

    fn run(queue: &mut StepQueue, kind: StepKind, exit_code: i32) -> NextWork {
        assert_eq!(queue.push(step(kind)), PushResult::Queued);
        let work = queue.next().unwrap();
        if matches!(work, NextWork::Run(_)) {
            assert_eq!(queue.finished(exit_code).map(|(kind, _)| kind), Some(kind));
        }
        work
    }

    #[test]
    fn a_failed_build_skips_one_exec() {
        use StepKind::{Build, Clean, Code, Exec};
        let mut queue = StepQueue::default();
        let skipped = NextWork::Answer { kind: Exec, exit_code: 127 };
        run(&mut queue, Build, 1);
        assert_eq!(run(&mut queue, Clean, 0), NextWork::Run(step(Clean)));
        assert_eq!(run(&mut queue, Code, 0), NextWork::Run(step(Code)));
        assert_eq!(run(&mut queue, Exec, 0), skipped);
        assert_eq!(run(&mut queue, Exec, 0), NextWork::Run(step(Exec)));
        run(&mut queue, Build, 1);
        run(&mut queue, Build, 0);
        assert_eq!(run(&mut queue, Exec, 0), NextWork::Run(step(Exec)));
    }

    #[test]
    fn steps_without_room_are_answered_in_their_turn() {
        let mut queue = StepQueue::default();
        for _ in 0..MAX_STEPS {
            assert_eq!(queue.push(step(StepKind::Clean)), PushResult::Queued);
        }
        assert_eq!(queue.push(step(StepKind::Code)), PushResult::Rejected);
        for _ in 0..MAX_STEPS {
            assert!(matches!(queue.next(), Some(NextWork::Run(_))));
            assert_eq!(queue.finished(0), Some((StepKind::Clean, false)));
        }
        assert_eq!(queue.next(), Some(NextWork::Answer { kind: StepKind::Code, exit_code: -1 }));
        assert_eq!(queue.next(), None);
    }

    #[test]
    fn places_and_bytes_are_bounded() {
        let mut queue = StepQueue::default();
        let large = Step { kind: StepKind::Code, text: "x".repeat(MAX_TEXT_BYTES / 2) };
        let pushed = [(); 3].map(|()| queue.push(large.clone()));
        assert_eq!(pushed, [PushResult::Queued, PushResult::Queued, PushResult::Rejected]);
        let all = (0..2 * MAX_ENTRIES).take_while(|_| queue.push(step(StepKind::Code)) != PushResult::Dropped).count();
        assert_eq!(all, MAX_ENTRIES - 3);
    }

    proptest! {
        #[test]
        fn every_step_is_answered_once_in_order_and_never_two_run(
            acts in prop::collection::vec(prop_oneof![
                prop_oneof![Just(StepKind::Clean), Just(StepKind::Build), Just(StepKind::Exec), Just(StepKind::Code)].prop_map(Some),
                Just(None),
            ], 0..100),
            codes in prop::collection::vec(-9i32..3, 100),
        ) {
            let mut queue = StepQueue::default();
            let (mut pushed, mut answered) = (Vec::new(), Vec::new());
            let advance = |queue: &mut StepQueue, answered: &mut Vec<StepKind>, code: i32| {
                answered.extend(queue.finished(code).map(|(kind, _)| kind));
                match queue.next() {
                    Some(NextWork::Answer { kind, .. }) => answered.push(kind),
                    Some(NextWork::Run(_)) => assert!(queue.next().is_none()),
                    None => {}
                }
            };
            for (act, code) in acts.into_iter().zip(codes.iter().cycle()) {
                match act {
                    Some(kind) => {
                        prop_assert_eq!(queue.push(step(kind)), PushResult::Queued);
                        pushed.push(kind);
                    }
                    None => advance(&mut queue, &mut answered, *code),
                }
            }
            while queue.waiting() > 0 || queue.is_running() {
                advance(&mut queue, &mut answered, 0);
            }
            prop_assert_eq!(answered, pushed);
        }
    }
}
