//! The session's state and its event loop.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::completion::Completions;
use super::end_log::SessionEndLog;
use super::event::{LoopAction, SessionEvent};
use super::exit_reason::MonitorExplainer;
use super::intrinsic::{self, EarlyRequests, Intrinsic};
use super::oom::OomReporter;
use super::output::Output;
use super::readiness::Readiness;
use super::services;
use super::signals::Signals;
use super::start::{Preparation, PreparedSession};
use super::step_queue::{NextWork, PushResult, StepQueue};
use super::step_state::StepState;
use super::stop;
use super::terminal;
use super::worker::Worker;
use crate::config::{ChildEnv, MemorySettings, Paths, Ports};
use crate::error::{FatalError, chain};
use crate::exit::Exit;
use crate::monitor::MonitorSetup;
use crate::process::{Console, Control, Launcher, OomScorePolicy, Reaper};
use crate::runtime::{Engine, Language, Runtime};
use crate::service::{ServiceCommand, Services, ServicesBusy, ServicesConfig, StartProgress, StartPublisher};
use crate::tasks::TaskGroup;
use crate::terminal::TerminalTransport;
use crate::transport::{self, Inbound, ReplyReceiver, ReplySender};
use crate::user_input::{self, InputWanted, UserInput};
use crate::wire::{InputOptions, Op, Reply, Step, StepKind};

/// Capacity of the event channel; tasks wait while it is full.
const QUEUED_EVENTS: usize = 16;

/// How long the reply to a step waits for reports of OOM kills before its end. The monitor answers within one second.
const REPORTS_TIMEOUT: Duration = Duration::from_secs(2);

/// The configuration of a session.
pub(crate) struct SessionConfig {
    /// The paths of the contract.
    pub paths: Paths,
    /// The ports to listen on.
    pub ports: Ports,
    /// The environment of child processes.
    pub env: ChildEnv,
    /// The language of the session.
    pub kind: &'static Language,
    /// The interpreter or compiler of that language.
    pub runtime_path: PathBuf,
    /// How OOM kills are detected.
    pub monitor_setup: MonitorSetup,
    /// What to do when memory runs low.
    pub memory: MemorySettings,
    /// How the OOM killer is to rank the runner and its children.
    pub rank: OomScorePolicy,
}

/// A running session.
pub(crate) struct Session {
    pub(super) tasks: TaskGroup,
    pub(super) replies: ReplySender,
    pub(super) console: Console,
    pub(super) queue: StepQueue,
    pub(super) step: StepState,
    pub(super) worker: Option<Arc<Worker>>,
    /// sshd and ttyd, once their preparation has started.
    pub(super) intrinsic: Option<Intrinsic>,
    early_requests: EarlyRequests,
    pub(super) startup: watch::Receiver<StartProgress>,
    pub(super) readiness: Readiness,
    pub(super) events: mpsc::Receiver<SessionEvent>,
    inbound: Inbound,
    pub(super) report: mpsc::Sender<SessionEvent>,
    launcher: Launcher,
    runtime: Arc<dyn Runtime>,
    input: UserInput,
    completions: Completions,
    inputs_wanted: mpsc::Receiver<InputWanted>,
    pub(super) services: Services,
    pub(super) oom: OomReporter,
    pub(super) end_log: SessionEndLog,
    /// Output is being flushed before a prompt is sent. Further input requests wait.
    is_prompting: bool,
    /// The next or running step is a `code` that arrived while the queue was empty, so its `finished` needs no spacing.
    is_sole_code: bool,
    /// The number of the current step, which identifies events of earlier steps.
    pub(super) step_number: u64,
    /// Seconds of `CLOCK_MONOTONIC`.
    pub(super) started_at: f64,
}

impl Session {
    /// Binds the sockets and starts to prepare for steps.
    ///
    /// # Errors
    /// If a port cannot be bound or no SIGCHLD handler can be installed.
    pub(crate) async fn start(
        mut config: SessionConfig,
        console: Console,
        replies: ReplySender,
        queue: ReplyReceiver,
    ) -> Result<Self, FatalError> {
        let (started_at, readiness) = (monotonic_seconds(), Readiness::of_session_started_at(Instant::now()));
        let tasks = TaskGroup::new();
        let inbound = transport::listen_pull(config.ports.replin, &tasks).await?;
        transport::listen_push(config.ports.replout, queue, &tasks).await?;
        let mut oom = OomReporter::start(config.monitor_setup, &config.paths, replies.clone(), &tasks);
        let end_log = SessionEndLog::start(config.paths.logs(), oom.charge());
        oom.record_to(end_log.recorder());
        let setup = |source| FatalError::Setup { what: "child reaping (SIGCHLD)", source };
        let launcher = Launcher {
            reaper: Reaper::start(&tasks, oom.exit_observer(), config.rank).map_err(setup)?,
            console: console.clone(),
            sink: Arc::new(Output::new(replies.clone())),
            logs: Some(config.paths.logs()),
            tasks: tasks.clone(),
            reasons: Arc::new(MonitorExplainer { causes: oom.causes() }),
        };
        let (wanted_tx, inputs_wanted) = mpsc::channel(1);
        oom.use_settings(config.memory, config.env.clone(), &launcher);
        let socket = config.paths.input_socket();
        let input = user_input::serve(&socket, config.kind.user_input, wanted_tx, &tasks);
        input.add_variable(&mut config.env);
        let (report, events) = mpsc::channel(QUEUED_EVENTS);
        let (progress, startup) = StartPublisher::new();
        let services = Services::start(ServicesConfig {
            paths: config.paths.clone(),
            language: config.kind.name,
            runtime_path: config.runtime_path.clone(),
            launcher: launcher.clone(),
            env: config.env.clone(),
            startup: startup.clone(),
        });
        let runtime = (config.kind.make)(config.runtime_path);
        let terminal_transport =
            if runtime.has_terminal() { terminal::open(&config.ports, &tasks).await } else { None };
        let mut session = Self {
            tasks,
            replies,
            console,
            queue: StepQueue::default(),
            step: StepState::Idle,
            worker: None,
            intrinsic: None,
            early_requests: EarlyRequests::default(),
            startup,
            readiness,
            events,
            inbound,
            report,
            launcher,
            runtime,
            input,
            completions: Completions::default(),
            inputs_wanted,
            services,
            oom,
            end_log,
            is_prompting: false,
            is_sole_code: false,
            step_number: 0,
            started_at,
        };
        session.prepare(config.paths, config.ports, config.env, terminal_transport, progress);
        Ok(session)
    }

    fn prepare(
        &mut self,
        paths: Paths,
        ports: Ports,
        env: ChildEnv,
        terminal_transport: Option<Arc<dyn TerminalTransport>>,
        progress: StartPublisher,
    ) {
        let control = Control::new();
        self.step = StepState::Preparing(control.clone());
        let preparation = Preparation {
            runtime: Arc::clone(&self.runtime),
            launcher: self.launcher.clone(),
            paths,
            ports,
            input: self.input.source(),
            terminal_transport,
            control,
            progress,
        };
        let report = self.report.clone();
        self.tasks.spawn("preparation", async move {
            let prepared = preparation.run(env).await;
            let _ = report.send(SessionEvent::Ready(Box::new(prepared))).await;
        });
    }

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
                    return Ok(stop::stop(self, signals, &signal.to_string()).await);
                }
                LoopAction::Fail(task) => {
                    stop::stop(self, signals, &format!("internal error: task `{task}` panicked")).await;
                    return Err(FatalError::TaskPanicked(task));
                }
            }
        }
    }

    async fn next_event(&mut self, signals: &mut Signals) -> SessionEvent {
        let message = async {
            self.replies.wait_for_answer_budget().await;
            self.inbound.recv().await
        };
        let wanted = async {
            self.replies.wait_for_answer_budget().await;
            self.inputs_wanted.recv().await
        };
        let about_services = async {
            self.replies.wait_for_answer_budget().await;
            self.services.next().await
        };
        let has_pending = self.oom.has_pending() && !self.queue.is_idle();
        let room_for_reports = async {
            if has_pending {
                self.replies.wait_for_answer_budget().await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        let overdue_at = self.step.reports_deadline();
        tokio::select! {
            biased;
            signal = signals.next() => SessionEvent::Signal(signal),
            task = self.tasks.failed() => SessionEvent::TaskPanicked(task),
            Some(event) = self.events.recv() => event,
            () = room_for_reports => SessionEvent::RoomForReports,
            event = self.oom.next() => SessionEvent::Oom(event),
            earlier = self.end_log.unexpected_ends() => SessionEvent::UnexpectedEnds(earlier),
            event = about_services => SessionEvent::Service(event),
            () = reached(overdue_at) => SessionEvent::ReportsOverdue,
            () = reached(self.readiness.deadline()) => SessionEvent::ReadinessOverdue,
            suggestions = self.completions.next() => SessionEvent::Completed(suggestions),
            Some(wanted) = wanted, if !self.is_prompting => SessionEvent::InputWanted(wanted),
            Some(frames) = message => SessionEvent::Message(frames),
        }
    }

    fn handle(&mut self, event: SessionEvent) -> LoopAction {
        match event {
            SessionEvent::Signal(signal) => return LoopAction::Stop(signal),
            SessionEvent::TaskPanicked(task) => return LoopAction::Fail(task),
            SessionEvent::Oom(event) => {
                let answered = self.oom.handle(event, !self.queue.is_idle(), &mut self.end_log);
                if let StepState::Reporting { is_settled, .. } = &mut self.step
                    && answered == Some(self.step_number)
                {
                    *is_settled = true;
                }
                self.finish_reported_step();
            }
            SessionEvent::UnexpectedEnds(ended) => {
                for end in &ended {
                    self.oom.report_earlier_end(end, !self.queue.is_idle());
                    self.end_log.write_unexpected_end(end, &self.tasks);
                }
            }
            SessionEvent::RoomForReports => {
                self.oom.send_pending();
                self.finish_reported_step();
            }
            SessionEvent::ReportsOverdue => {
                tracing::warn!("an OOM kill report for this step may arrive late");
                self.finish_step();
            }
            SessionEvent::Service(event) => self.replies.answer(services::reply(event)),
            SessionEvent::Message(frames) => match Op::decode(&frames) {
                Ok(op) => self.handle_op(op),
                Err(problem) => {
                    tracing::warn!("skipping an invalid message from the agent: {}", chain(&problem));
                    // The client waits for a reply to this op even so.
                    if problem.op() == Some("complete") {
                        self.completions.request(None, String::new());
                    }
                }
            },
            SessionEvent::Ready(prepared) => {
                tracing::debug!("ready for steps");
                self.step = StepState::Idle;
                self.prepared(*prepared);
                self.await_servers();
                self.advance();
            }
            SessionEvent::ServersSettled { late } => self.servers_settled(&late),
            SessionEvent::ReadinessOverdue => self.readiness_overdue(),
            SessionEvent::Completed(suggestions) => self.replies.answer(Reply::Completion(suggestions)),
            SessionEvent::StepDone { exit_code } => self.await_reports(exit_code),
            SessionEvent::InputWanted(wanted) => self.flush_then_prompt(wanted),
            SessionEvent::OutputFlushed { step_number, wanted } => {
                self.is_prompting = false;
                // The program may have exited meanwhile.
                if step_number == self.step_number && !matches!(self.step, StepState::Reporting { .. }) {
                    let options = wanted.is_password.map(|is_password| InputOptions { is_password });
                    self.replies.answer(Reply::WaitingInput(options));
                }
            }
        }
        LoopAction::Continue
    }

    fn handle_op(&mut self, op: Op) {
        match op {
            Op::Step(step) => self.enqueue(step),
            Op::Input(text) => self.input.answer(text),
            Op::Interrupt => match (self.step.control(), self.engine()) {
                (Some(control), _) => control.interrupt(),
                (None, Some(engine)) => engine.interrupt(),
                (None, None) => tracing::debug!("interrupt ignored: nothing is running"),
            },
            Op::Status { at_once } => self.status_requested(at_once),
            Op::Complete(request) => self.completions.request(self.engine().cloned(), request),
            Op::Event(event) if event.kind == "oom" => self.oom.agent_reported_kill(),
            Op::Event(event) => tracing::info!("Agent-notified event: {} {}", event.kind, event.data),
            Op::StartService(request) => {
                let order = intrinsic::order(&mut self.intrinsic, &mut self.early_requests, &request);
                self.order(order.unwrap_or_else(|| services::start(request)));
            }
            Op::StartModelService(request) => self.order(services::start_model(request)),
            Op::ShutdownService(name) => {
                if !self.intrinsic.as_mut().is_some_and(|intrinsic| intrinsic.shut_down(&name)) {
                    self.order(ServiceCommand::Stop(name));
                }
            }
            Op::GetApps(name) => self.order(ServiceCommand::ListApps(name)),
        }
    }

    fn order(&self, order: ServiceCommand) {
        if let Err(busy) = self.services.order(order) {
            tracing::warn!("request refused: {busy}");
            let ServicesBusy(order) = &busy;
            if let Some(reply) = services::refusal(order, &busy.to_string()) {
                self.replies.answer(reply);
            }
        }
    }

    /// Takes over the results of the preparation.
    pub(super) fn prepared(&mut self, prepared: PreparedSession) {
        let PreparedSession { env, engine, intrinsic } = prepared;
        self.early_requests.pass_on(self.intrinsic.insert(intrinsic));
        let worker = Worker { runtime: Arc::clone(&self.runtime), launcher: self.launcher.clone(), env, engine };
        self.worker = Some(Arc::new(worker));
    }

    /// The engine that runs `code`, if the language has one.
    pub(super) fn engine(&self) -> Option<&Arc<dyn Engine>> {
        self.worker.as_ref()?.engine.as_ref()
    }

    fn enqueue(&mut self, step: Step) {
        let op = step.kind.op_name();
        if self.queue.is_idle() {
            self.is_sole_code = step.kind == StepKind::Code;
        }
        match self.queue.push(step) {
            PushResult::Queued => {}
            PushResult::Rejected => tracing::error!("step queue full: `{op}` rejected"),
            PushResult::Dropped => tracing::error!("step queue full: `{op}` dropped without a reply"),
        }
        self.advance();
    }

    /// Starts the next step if none is running and the preparation is complete.
    fn advance(&mut self) {
        let Some(worker) = &self.worker else { return };
        while let Some(work) = self.queue.next() {
            match work {
                NextWork::Answer { kind, exit_code } => {
                    self.oom.send_pending();
                    self.replies.answer(Reply::Finished { kind, exit_code });
                }
                NextWork::Run(step) => {
                    self.oom.send_pending();
                    let control = Control::new();
                    self.step = StepState::Running(control.clone());
                    self.end_log.record_step_start(self.step_number, &step);
                    let (worker, report) = (Arc::clone(worker), self.report.clone());
                    self.tasks.spawn("step", async move {
                        let exit_code = worker.run(&step, &control).await;
                        let _ = report.send(SessionEvent::StepDone { exit_code }).await;
                    });
                }
            }
        }
    }

    pub(super) fn step_done(&mut self, exit_code: i32) {
        self.step = StepState::Idle;
        self.end_log.record_step_end(self.step_number, exit_code);
        self.step_number += 1;
        let is_sole_code = std::mem::take(&mut self.is_sole_code);
        match self.queue.finished(exit_code).map(|kind| Reply::Finished { kind, exit_code }) {
            Some(finished) if is_sole_code => self.replies.answer_unspaced(finished),
            Some(finished) => self.replies.answer(finished),
            None => {}
        }
    }

    /// A step finished: reports of OOM kills before that go first.
    fn await_reports(&mut self, exit_code: i32) {
        let control = self.step.control().cloned().unwrap_or_default();
        let deadline = Instant::now() + REPORTS_TIMEOUT;
        self.step = StepState::Reporting { control, exit_code, is_settled: false, deadline };
        if !self.oom.request_barrier(self.step_number) {
            self.finish_step();
        }
    }

    /// Finishes the step if all reports of OOM kills are sent.
    fn finish_reported_step(&mut self) {
        if matches!(self.step, StepState::Reporting { is_settled: true, .. }) && !self.oom.has_pending() {
            self.finish_step();
        }
    }

    /// Answers the step that finished and starts the next one.
    fn finish_step(&mut self) {
        if let StepState::Reporting { exit_code, .. } = self.step {
            self.step_done(exit_code);
            self.advance();
        }
    }

    /// Flushes the output of the program, which includes its prompt, before the input request is sent.
    fn flush_then_prompt(&mut self, wanted: InputWanted) {
        self.is_prompting = true;
        let (control, report, step_number) = (self.step.control().cloned(), self.report.clone(), self.step_number);
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

fn monotonic_seconds() -> f64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0.0, |now| std::time::Duration::from(now).as_secs_f64())
}
