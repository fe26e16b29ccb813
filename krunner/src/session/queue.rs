//! The order of steps: one at a time, as they came, with the rule of the failed build.
//!
//! ```text
//!            push                      next                     finished
//! agent ───────────▶ waiting ───────────────────▶ running ───────────────────▶ (none)
//!                       │ exec after a failed build │ build with a code other than 0:
//!                       └──▶ answered with 127      └ the next exec is not run
//! ```
//!
//! Bounded: a step for which there is no room keeps its place, so that its answer comes in order, but
//! not its text. Pure.

use std::collections::VecDeque;

use crate::wire::{Step, StepKind};

/// Texts of waiting steps together: one of the largest there is, and many ordinary ones.
const MAX_TEXT_BYTES: usize = 128 * 1024 * 1024;

/// Steps that wait with their text.
const MAX_STEPS: usize = 4096;

/// Places altogether, steps without text included.
const MAX_PLACES: usize = 65_536;

/// What an `exec` after a failed build is answered with.
const BUILD_FAILED: i32 = 127;

/// What a step that found no room is answered with.
const REFUSED: i32 = -1;

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Run it, and say when it has [finished](TaskQueue::finished).
    Run(Step),
    /// Answer without running.
    Answer { kind: StepKind, exit_code: i32 },
}

/// What became of a step that was pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Pushed {
    Queued,
    /// It will be answered with `-1` in its turn.
    Refused,
    /// There is not even room for the answer.
    Dropped,
}

#[derive(Debug)]
enum Place {
    Step(Step),
    Refused(StepKind),
}

#[derive(Debug, Default)]
pub(super) struct TaskQueue {
    waiting: VecDeque<Place>,
    steps: usize,
    text_bytes: usize,
    running: Option<StepKind>,
    build_failed: bool,
}

impl TaskQueue {
    pub(super) fn push(&mut self, step: Step) -> Pushed {
        if self.waiting.len() >= MAX_PLACES {
            return Pushed::Dropped;
        }
        if self.steps >= MAX_STEPS || self.text_bytes + step.text.len() > MAX_TEXT_BYTES {
            self.waiting.push_back(Place::Refused(step.kind));
            return Pushed::Refused;
        }
        self.steps += 1;
        self.text_bytes += step.text.len();
        self.waiting.push_back(Place::Step(step));
        Pushed::Queued
    }

    /// The next piece of work, unless a step runs.
    pub(super) fn next(&mut self) -> Option<Work> {
        if self.running.is_some() {
            return None;
        }
        match self.waiting.pop_front()? {
            Place::Refused(kind) => {
                match kind {
                    StepKind::Build => self.build_failed = true,
                    StepKind::Exec => self.build_failed = false,
                    StepKind::Clean | StepKind::Code => {}
                }
                Some(Work::Answer { kind, exit_code: REFUSED })
            }
            Place::Step(step) => {
                self.steps -= 1;
                self.text_bytes -= step.text.len();
                if step.kind == StepKind::Exec && std::mem::take(&mut self.build_failed) {
                    return Some(Work::Answer { kind: step.kind, exit_code: BUILD_FAILED });
                }
                self.running = Some(step.kind);
                Some(Work::Run(step))
            }
        }
    }

    /// The running step has ended; says which it was.
    pub(super) fn finished(&mut self, exit_code: i32) -> Option<StepKind> {
        let kind = self.running.take();
        if kind == Some(StepKind::Build) {
            self.build_failed = exit_code != 0;
        }
        kind
    }

    /// Whether no step runs or waits.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_none() && self.waiting.is_empty()
    }

    /// Whether a step runs.
    #[cfg(test)]
    fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// How many steps wait.
    pub(super) fn waiting(&self) -> usize {
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

    fn run(queue: &mut TaskQueue, kind: StepKind, exit_code: i32) -> Work {
        assert_eq!(queue.push(step(kind)), Pushed::Queued);
        let work = queue.next().unwrap();
        if matches!(work, Work::Run(_)) {
            assert_eq!(queue.finished(exit_code), Some(kind));
        }
        work
    }

    #[test]
    fn a_failed_build_skips_one_exec() {
        use StepKind::{Build, Clean, Code, Exec};
        let mut queue = TaskQueue::default();
        let skipped = Work::Answer { kind: Exec, exit_code: 127 };
        run(&mut queue, Build, 1);
        assert_eq!(run(&mut queue, Clean, 0), Work::Run(step(Clean)));
        assert_eq!(run(&mut queue, Code, 0), Work::Run(step(Code)));
        assert_eq!(run(&mut queue, Exec, 0), skipped);
        assert_eq!(run(&mut queue, Exec, 0), Work::Run(step(Exec)));
        run(&mut queue, Build, 1);
        run(&mut queue, Build, 0);
        assert_eq!(run(&mut queue, Exec, 0), Work::Run(step(Exec)));
    }

    #[test]
    fn steps_without_room_are_answered_in_their_turn() {
        let mut queue = TaskQueue::default();
        for _ in 0..MAX_STEPS {
            assert_eq!(queue.push(step(StepKind::Clean)), Pushed::Queued);
        }
        assert_eq!(queue.push(step(StepKind::Code)), Pushed::Refused);
        for _ in 0..MAX_STEPS {
            assert!(matches!(queue.next(), Some(Work::Run(_))));
            assert_eq!(queue.finished(0), Some(StepKind::Clean));
        }
        assert_eq!(queue.next(), Some(Work::Answer { kind: StepKind::Code, exit_code: -1 }));
        assert_eq!(queue.next(), None);
    }

    #[test]
    fn places_and_bytes_are_bounded() {
        let mut queue = TaskQueue::default();
        let large = Step { kind: StepKind::Code, text: "x".repeat(MAX_TEXT_BYTES / 2) };
        let pushed = [(); 3].map(|()| queue.push(large.clone()));
        assert_eq!(pushed, [Pushed::Queued, Pushed::Queued, Pushed::Refused]);
        let all = (0..2 * MAX_PLACES).take_while(|_| queue.push(step(StepKind::Code)) != Pushed::Dropped).count();
        assert_eq!(all, MAX_PLACES - 3);
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
            let mut queue = TaskQueue::default();
            let (mut pushed, mut answered) = (Vec::new(), Vec::new());
            let advance = |queue: &mut TaskQueue, answered: &mut Vec<StepKind>, code: i32| {
                answered.extend(queue.finished(code));
                match queue.next() {
                    Some(Work::Answer { kind, .. }) => answered.push(kind),
                    Some(Work::Run(_)) => assert!(queue.next().is_none()),
                    None => {}
                }
            };
            for (act, code) in acts.into_iter().zip(codes.iter().cycle()) {
                match act {
                    Some(kind) => {
                        prop_assert_eq!(queue.push(step(kind)), Pushed::Queued);
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
