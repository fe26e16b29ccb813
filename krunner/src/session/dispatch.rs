//! The session's state and its event loop.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::attribution::SessionAttribution;
use super::completion::Completions;
use super::event::{LoopAction, SessionEvent};
use super::preparation::PreparedSession;
use super::readiness::{Readiness, SERVERS_DEADLINE, StatusRequest};
use super::services::SessionServices;
use super::signals::Signals;
use super::step_queue::PushResult;
use super::steps::{NextStep, Steps};
use super::stop::Shutdown;
use super::worker::Worker;
use crate::config::ChildEnv;
use crate::error::{FatalError, chain};
use crate::exit::Exit;
use crate::process::{Console, Launcher};
use crate::runtime::{Engine, Runtime};
use crate::sys::memory;
use crate::tasks::TaskGroup;
use crate::transport::{Inbound, ReplySender};
use crate::user_input::{InputWanted, UserInput};
use crate::wire::{InputOptions, Op, Reply, Step};

/// A running session.
pub(crate) struct Session {
    pub(super) agent: Agent,
    pub(super) steps: Steps,
    pub(super) execution: StepExecution,
    pub(super) prompts: Prompts,
    pub(super) services: SessionServices,
    pub(super) attribution: SessionAttribution,
    /// What tasks report back.
    pub(super) events: mpsc::Receiver<SessionEvent>,
    /// Where tasks report to.
    pub(super) report: mpsc::Sender<SessionEvent>,
    pub(super) tasks: TaskGroup,
    pub(super) console: Console,
}

/// The connection to the agent.
pub(super) struct Agent {
    pub(super) inbound: Inbound,
    pub(super) replies: ReplySender,
    pub(super) readiness: Readiness,
    /// Seconds of `CLOCK_MONOTONIC`.
    pub(super) started_at: f64,
}

/// What runs steps and completes code.
pub(super) struct StepExecution {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) launcher: Launcher,
    /// `None` until the session is prepared.
    pub(super) worker: Option<Arc<Worker>>,
    pub(super) completions: Completions,
}

/// Requests of programs for input from the user.
pub(super) struct Prompts {
    pub(super) input: UserInput,
    pub(super) wanted: mpsc::Receiver<InputWanted>,
    /// Output is being flushed before a prompt is sent. Further requests wait.
    pub(super) is_prompting: bool,
}

impl Agent {
    /// Answers a `status` now or when the session is ready.
    fn status_requested(&mut self, at_once: bool) {
        let request = if at_once { StatusRequest::AnswerNow } else { self.readiness.request() };
        match request {
            StatusRequest::AnswerNow => self.answer_status(),
            StatusRequest::Waits => tracing::debug!("deferring the `status` reply until the session is ready"),
            StatusRequest::Refused => tracing::warn!("too many pending `status` requests; dropping one"),
        }
    }

    /// Answers the `status` requests that wait for readiness.
    fn become_ready(&mut self) {
        for _ in 0..self.readiness.open() {
            self.answer_status();
        }
    }

    fn answer_status(&self) {
        self.replies.answer(Reply::Status { started_at: self.started_at });
    }
}

impl StepExecution {
    /// Takes over the results of the preparation.
    fn prepared(&mut self, env: ChildEnv, engine: Option<Arc<dyn Engine>>) {
        let (runtime, launcher) = (Arc::clone(&self.runtime), self.launcher.clone());
        self.worker = Some(Arc::new(Worker { runtime, launcher, env, engine }));
    }

    /// The engine that runs `code`, if the language has one.
    fn engine(&self) -> Option<&Arc<dyn Engine>> {
        self.worker.as_ref()?.engine.as_ref()
    }
}

impl Session {
    /// Serves the agent until a signal arrives, then shuts down.
    ///
    /// # Errors
    /// If an internal task panicked.
    pub(crate) async fn run(mut self, signals: &mut Signals) -> Result<Exit, FatalError> {
        loop {
            let event = self.next_event(signals).await;
            match self.handle(event) {
                LoopAction::Continue => {}
                LoopAction::Stop(signal) => {
                    signal.log();
                    return Ok(self.shut_down(signals, &signal.to_string()).await);
                }
                LoopAction::Fail(task) => {
                    let reason = format!("internal error: task `{task}` panicked");
                    self.shut_down(signals, &reason).await;
                    return Err(FatalError::TaskPanicked(task));
                }
            }
        }
    }

    async fn shut_down(self, signals: &mut Signals, reason: &str) -> Exit {
        let shutdown = Shutdown {
            engine: self.execution.engine().cloned(),
            steps: self.steps,
            services: self.services,
            attribution: self.attribution,
            events: self.events,
            replies: self.agent.replies,
            tasks: self.tasks,
            console: self.console,
        };
        let exit = shutdown.run(signals, reason).await;
        // Until now, so that the agent gets no connection closed, and programs that ask for input no end of file.
        drop((self.agent.inbound, self.prompts));
        exit
    }

    async fn next_event(&mut self, signals: &mut Signals) -> SessionEvent {
        let replies = &self.agent.replies;
        let message = async {
            replies.wait_for_answer_budget().await;
            self.agent.inbound.recv().await
        };
        let wanted = async {
            replies.wait_for_answer_budget().await;
            self.prompts.wanted.recv().await
        };
        let about_services = async {
            replies.wait_for_answer_budget().await;
            self.services.next().await
        };
        let may_send_completion = replies.wait_for_answer_budget();
        let is_step_held_up = self.steps.has_next();
        let room_for_steps = async {
            if is_step_held_up {
                replies.wait_for_room_for_end().await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        let has_pending = self.attribution.oom.has_pending() && self.steps.is_attached();
        let room_for_reports = async {
            if has_pending {
                replies.wait_for_answer_budget().await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            signal = signals.next() => SessionEvent::Signal(signal),
            task = self.tasks.failed() => SessionEvent::TaskPanicked(task),
            Some(event) = self.events.recv() => event,
            () = room_for_reports => SessionEvent::RoomForReports,
            () = room_for_steps => SessionEvent::RoomForSteps,
            event = self.attribution.oom.next() => SessionEvent::Oom(event),
            earlier = self.attribution.end_log.unexpected_ends() => SessionEvent::UnexpectedEnds(earlier),
            reply = about_services => SessionEvent::Service(reply),
            () = reached(self.steps.reports_deadline()) => SessionEvent::ReportsOverdue,
            () = reached(self.agent.readiness.deadline()) => SessionEvent::ReadinessOverdue,
            suggestions = self.execution.completions.next(may_send_completion) => SessionEvent::Completed(suggestions),
            Some(wanted) = wanted, if !self.prompts.is_prompting => SessionEvent::InputWanted(wanted),
            Some(frames) = message => SessionEvent::Message(frames),
        }
    }

    fn handle(&mut self, event: SessionEvent) -> LoopAction {
        match event {
            SessionEvent::Signal(signal) => return LoopAction::Stop(signal),
            SessionEvent::TaskPanicked(task) => return LoopAction::Fail(task),
            SessionEvent::Oom(event) => {
                if let Some(number) = self.attribution.handle(event, self.steps.is_attached()) {
                    self.steps.reports_settled(number);
                }
                self.finish_reported_step();
            }
            SessionEvent::UnexpectedEnds(ended) => {
                self.attribution.report_earlier_ends(&ended, self.steps.is_attached(), &self.tasks);
            }
            SessionEvent::RoomForSteps => self.advance(),
            SessionEvent::RoomForReports => {
                self.attribution.oom.send_pending();
                self.finish_reported_step();
            }
            SessionEvent::ReportsOverdue => {
                tracing::warn!("an OOM kill report for this step may arrive late");
                self.finish_step();
            }
            SessionEvent::Service(reply) => self.agent.replies.answer(reply),
            SessionEvent::Message(frames) => match Op::decode(&frames) {
                Ok(op) => self.handle_op(op),
                Err(problem) => {
                    tracing::warn!("skipping an invalid message from the agent: {}", chain(&problem));
                    // The client waits for a reply to this op even so.
                    if problem.op() == Some("complete") {
                        self.execution.completions.request(None, String::new());
                    }
                }
            },
            SessionEvent::Ready(prepared) => self.prepared(*prepared),
            SessionEvent::ServersSettled { late } => {
                for name in late {
                    tracing::warn!("{name} is not listening {SERVERS_DEADLINE:?} after the bootstrap script finished");
                }
                self.agent.become_ready();
            }
            SessionEvent::ReadinessOverdue => {
                let pending = self.services.pending();
                tracing::warn!("answering `status` although the session is not ready: waiting for {pending}");
                self.agent.become_ready();
            }
            SessionEvent::Completed(suggestions) => self.agent.replies.answer(Reply::Completion(suggestions)),
            SessionEvent::StepDone { exit_code } => self.await_reports(exit_code),
            SessionEvent::InputWanted(wanted) => self.flush_then_prompt(wanted),
            SessionEvent::OutputFlushed { step_number, wanted } => {
                self.prompts.is_prompting = false;
                // The program may have exited meanwhile.
                if step_number == self.steps.number() && !self.steps.has_ended() {
                    let options = wanted.is_password.map(|is_password| InputOptions { is_password });
                    self.agent.replies.answer(Reply::WaitingInput(options));
                }
            }
        }
        LoopAction::Continue
    }

    fn handle_op(&mut self, op: Op) {
        let refusal = match op {
            Op::StartService(request) => self.services.start(request),
            Op::StartModelService(request) => self.services.start_model(request),
            Op::ShutdownService(name) => self.services.stop(name),
            Op::GetApps(name) => self.services.list(name),
            Op::Step(step) => return self.enqueue(step),
            Op::Input(text) => return self.prompts.input.answer(text),
            Op::Interrupt => return self.interrupt(),
            Op::Status { at_once } => return self.agent.status_requested(at_once),
            Op::Complete(request) => {
                let engine = self.execution.engine().cloned();
                return self.execution.completions.request(engine, request);
            }
            Op::Event(event) if event.kind == "oom" => return self.attribution.oom.agent_reported_kill(),
            Op::Event(event) => return tracing::info!("Agent-notified event: {} {}", event.kind, event.data),
        };
        if let Some(reply) = refusal {
            self.agent.replies.answer(reply);
        }
    }

    fn interrupt(&self) {
        match (self.steps.control(), self.execution.engine()) {
            (Some(control), _) => control.interrupt(),
            (None, Some(engine)) => engine.interrupt(),
            (None, None) => tracing::debug!("interrupt ignored: nothing is running"),
        }
    }

    /// Takes over the results of the preparation, and waits for sshd and ttyd, the last part of the start.
    fn prepared(&mut self, prepared: PreparedSession) {
        tracing::debug!("ready for steps");
        let PreparedSession { env, engine, intrinsic } = prepared;
        let settled = intrinsic.settled(Instant::now() + SERVERS_DEADLINE);
        self.services.prepared(intrinsic);
        self.execution.prepared(env, engine);
        self.steps.prepared();
        let report = self.report.clone();
        self.tasks.spawn("readiness of sshd and ttyd", async move {
            let late = settled.await;
            let _ = report.send(SessionEvent::ServersSettled { late }).await;
        });
        self.advance();
    }

    fn enqueue(&mut self, step: Step) {
        let op = step.kind.op_name();
        match self.steps.push(step) {
            PushResult::Queued => {}
            PushResult::Rejected => tracing::error!("step queue full: `{op}` rejected"),
            PushResult::Dropped => tracing::error!("step queue full: `{op}` dropped without a reply"),
        }
        self.advance();
    }

    /// Starts the next step if none is running, the preparation is complete, and few ends of steps wait to be sent.
    fn advance(&mut self) {
        let Some(worker) = &self.execution.worker else { return };
        while self.agent.replies.has_room_for_end()
            && let Some(next) = self.steps.next()
        {
            self.attribution.oom.send_pending();
            match next {
                NextStep::Answer { kind, exit_code } => self.agent.replies.answer(Reply::Finished { kind, exit_code }),
                NextStep::Run(started, control) => {
                    self.attribution.end_log.record_step_start(started.number, &started.step);
                    self.prompts.input.step_started();
                    let (worker, report) = (Arc::clone(worker), self.report.clone());
                    self.tasks.spawn("step", async move {
                        let exit_code = worker.run(&started.step, &control).await;
                        let _ = report.send(SessionEvent::StepDone { exit_code }).await;
                    });
                }
            }
        }
        if self.steps.freed_memory() {
            memory::trim_heap();
            // Trimming released the reserve, too.
            memory::renew_heap_reserve();
        }
    }

    /// The program of a step ended: reports of OOM kills before that go first.
    fn await_reports(&mut self, exit_code: i32) {
        self.steps.program_ended(exit_code, Instant::now());
        if !self.attribution.oom.request_barrier(self.steps.number()) {
            self.finish_step();
        }
    }

    /// Finishes the step if all reports of OOM kills are sent.
    fn finish_reported_step(&mut self) {
        if self.steps.is_settled() && !self.attribution.oom.has_pending() {
            self.finish_step();
        }
    }

    /// Answers the step that ended and starts the next one.
    fn finish_step(&mut self) {
        if let Some(finished) = self.steps.finish() {
            self.prompts.input.step_ended();
            self.attribution.end_log.record_step_end(finished.number, finished.exit_code);
            finished.answer(&self.agent.replies);
            self.advance();
        }
    }

    /// Flushes the output of the program, which includes its prompt, before the input request is sent.
    fn flush_then_prompt(&mut self, wanted: InputWanted) {
        self.prompts.is_prompting = true;
        let (control, report, step_number) = (self.steps.control().cloned(), self.report.clone(), self.steps.number());
        self.tasks.spawn("request for input", async move {
            if let Some(control) = control {
                control.flush_output().await;
            }
            let _ = report.send(SessionEvent::OutputFlushed { step_number, wanted }).await;
        });
    }
}

async fn reached(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
