//! Shutdown of a session, within ten seconds in any case.
//!
//! | part | at most |
//! |---|---|
//! | the running step and the services: TERM, 2 s, KILL, their last output; concurrently the engine | [`STEP_DEADLINE`] |
//! | reports of OOM kills in that step | [`REPORT_DEADLINE`] |
//! | orphaned processes of user code | 2 x [`ORPHAN_TIMEOUT`] |
//! | replies to the agent; concurrently the shutdown record of the flight recorder | [`FLUSH_DEADLINE`] |
//! | our own tasks | [`TASKS_DEADLINE`] |
//! | our own stdout and stderr | [`CONSOLE_DEADLINE`] each |
//!
//! A second signal kills the remaining processes within [`FORCED_DEADLINE`].

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use super::attribution::SessionAttribution;
use super::event::SessionEvent;
use super::intrinsic::Intrinsic;
use super::services::SessionServices;
use super::signals::Signals;
use super::steps::Steps;
use crate::exit::Exit;
use crate::process::{Console, kill_children, terminate_orphans};
use crate::runtime::Engine;
use crate::tasks::TaskGroup;
use crate::transport::ReplySender;
use crate::wire::Reply;
use crate::writer;

const STEP_DEADLINE: Duration = Duration::from_millis(3500);
/// The monitor answers within one second.
const REPORT_DEADLINE: Duration = Duration::from_millis(1200);
const ORPHAN_TIMEOUT: Duration = Duration::from_millis(800);
const FLUSH_DEADLINE: Duration = Duration::from_secs(3);
/// Concurrent with flushing the replies.
const RECORD_DEADLINE: Duration = Duration::from_millis(500);
const CONSOLE_DEADLINE: Duration = Duration::from_millis(300);
const FORCED_DEADLINE: Duration = Duration::from_millis(100);
const TASKS_DEADLINE: Duration = Duration::from_millis(500);

/// Exit code of a step that did not stop in time.
const KILLED: i32 = -nix::libc::SIGKILL;

/// Exit code of a step that was still waiting.
const CANCELLED: i32 = -nix::libc::SIGTERM;

/// How many ends of steps are sent, with those that are queued: they keep a distance of 10 ms, and the flush has a deadline.
const MAX_FLUSHED_ENDS: usize = 250;

/// The parts of a session that shut down.
pub(super) struct Shutdown {
    /// The engine, if the session was prepared and its language has one.
    pub(super) engine: Option<Arc<dyn Engine>>,
    pub(super) steps: Steps,
    pub(super) services: SessionServices,
    pub(super) attribution: SessionAttribution,
    /// What the step and the preparation report.
    pub(super) events: mpsc::Receiver<SessionEvent>,
    pub(super) replies: ReplySender,
    pub(super) tasks: TaskGroup,
    pub(super) console: Console,
}

impl Shutdown {
    /// Shuts down; a second signal forces it.
    pub(super) async fn run(mut self, signals: &mut Signals, reason: &str) -> Exit {
        self.attribution.end_log.record_stopping(reason);
        tokio::select! {
            biased;
            second = signals.next() => {
                kill_children(FORCED_DEADLINE).await;
                let reason = format!("{reason}, then a second signal: {second}");
                self.attribution.end_log.record_shutdown(&reason, FORCED_DEADLINE).await;
                Exit::Forced
            }
            () = self.wind_down(reason) => Exit::Ok,
        }
    }

    async fn wind_down(&mut self, reason: &str) {
        tracing::debug!("stopping");
        // A blocked stdout, stderr or task log must not delay the remaining program output to the agent.
        writer::hurry();
        let deadline = Instant::now() + STEP_DEADLINE;
        let (engine, services) = (self.engine.clone(), self.services.shut_down(STEP_DEADLINE));
        let ((), (), services_ended) = tokio::join!(self.end_step(deadline), end_engine(engine), services);
        // `end_step` may have received sshd and ttyd together with the end of the bootstrap script.
        let intrinsic_ended = match self.services.intrinsic() {
            Some(intrinsic) => intrinsic.over(deadline).await,
            None => true,
        };
        if !(services_ended && intrinsic_ended) {
            tracing::warn!("some services did not stop in time");
        }
        self.cancel_waiting_steps();
        terminate_orphans(ORPHAN_TIMEOUT).await;
        let goodbye = self.attribution.end_log.record_shutdown(reason, RECORD_DEADLINE);
        let (is_flushed, ()) = tokio::join!(self.replies.flush(FLUSH_DEADLINE), goodbye);
        if !is_flushed {
            tracing::warn!("some replies were not delivered to the agent");
        }
        if !self.tasks.stop(TASKS_DEADLINE).await {
            tracing::warn!("some internal tasks did not stop in time");
        }
        for writer in [&self.console.stdout, &self.console.stderr] {
            // A failure cannot be reported any more.
            let _ = writer.flush(CONSOLE_DEADLINE).await;
        }
    }

    /// Terminates the running step or the bootstrap script, and answers the step.
    async fn end_step(&mut self, deadline: Instant) {
        if !self.steps.has_ended() {
            let Some(control) = self.steps.control() else { return };
            control.terminate();
            match timeout_at(deadline, self.step_ended()).await {
                Ok(Some(exit_code)) => self.steps.program_ended(exit_code, Instant::now()),
                Ok(None) => return,
                Err(_) => {
                    tracing::warn!("a step did not stop in time; some of its output may be lost");
                    self.steps.program_ended(KILLED, Instant::now());
                    return self.answer_step();
                }
            }
        }
        self.report_kills().await;
        self.answer_step();
    }

    /// Waits for the end of the step and returns its exit code, or `None` if it was the preparation.
    async fn step_ended(&mut self) -> Option<i32> {
        loop {
            // Without a sender left, the step's task panicked.
            let Some(event) = self.events.recv().await else { return Some(KILLED) };
            match event {
                SessionEvent::StepDone { exit_code } => return Some(exit_code),
                SessionEvent::Ready(prepared) => {
                    // Requests that waited for them must not start them again.
                    self.services.prepared(prepared.intrinsic);
                    self.services.intrinsic().into_iter().for_each(Intrinsic::stop);
                    // The engine started during the shutdown, so it was not stopped yet.
                    end_engine(prepared.engine).await;
                    return None;
                }
                _ => {}
            }
        }
    }

    fn answer_step(&mut self) {
        if let Some(finished) = self.steps.finish() {
            self.attribution.end_log.record_step_end(finished.number, finished.exit_code);
            finished.answer(&self.replies);
        }
    }

    /// Answers the steps that will not run.
    fn cancel_waiting_steps(&mut self) {
        let waiting = self.steps.take_waiting();
        if !waiting.is_empty() {
            tracing::warn!("{} queued steps cancelled: the runner is shutting down", waiting.len());
        }
        let room = MAX_FLUSHED_ENDS.saturating_sub(self.replies.queued_ends());
        for kind in waiting.into_iter().take(room) {
            self.replies.answer(Reply::Finished { kind, exit_code: CANCELLED });
        }
    }

    /// Reports the OOM kills so far, before the end of the step.
    async fn report_kills(&mut self) {
        let (number, attribution) = (self.steps.number(), &mut self.attribution);
        if !attribution.oom.request_barrier(number) {
            return;
        }
        let told = async {
            loop {
                let event = attribution.oom.next().await;
                if attribution.handle(event, true) == Some(number) {
                    return;
                }
            }
        };
        if timeout(REPORT_DEADLINE, told).await.is_err() {
            tracing::warn!("an OOM kill report may be missing: the runner is shutting down");
        }
        self.attribution.oom.send_pending();
    }
}

async fn end_engine(engine: Option<Arc<dyn Engine>>) {
    let Some(engine) = engine else { return };
    if timeout(STEP_DEADLINE, engine.stop()).await.is_err() {
        tracing::warn!("the query-mode engine did not stop in time");
    }
}
