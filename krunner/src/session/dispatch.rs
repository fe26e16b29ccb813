//! The owner of the session's state, and its loop.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::completion::Completions;
use super::end_reason::EndReasons;
use super::event::{Event, Response};
use super::intrinsic::{self, Intrinsic};
use super::oom::Oom;
use super::output::Output;
use super::queue::{Pushed, TaskQueue, Work};
use super::services;
use super::signals::Signals;
use super::start::{Preparation, Prepared};
use super::stop;
use super::terminal;
use super::worker::Worker;
use crate::config::{ChildEnv, Paths, Ports};
use crate::error::{Critical, chain};
use crate::exit::Exit;
use crate::monitor::Means;
use crate::process::{Console, Control, Launcher, OomRank, Reaper};
use crate::runtime::{Engine, Kind, Runtime};
use crate::service::{Busy, Order, Services, Setting};
use crate::tasks::TaskGroup;
use crate::terminal::Line;
use crate::transport::{self, Inbound, Outbox, Queue};
use crate::user_input::{self, InputWanted, UserInput};
use crate::wire::{InputOptions, Op, Reply, Step, StepKind};

/// Tasks that report at the same time; they wait for their turn.
const QUEUED_EVENTS: usize = 16;

/// How long the end of a step waits for the reports of kills before it. The monitor answers within one second.
const SETTLE_PATIENCE: Duration = Duration::from_secs(2);

/// What a session is started with.
pub struct Settings {
    /// Where things are.
    pub paths: Paths,
    /// What to listen on.
    pub ports: Ports,
    /// The environment of children.
    pub env: ChildEnv,
    /// The language.
    pub kind: &'static Kind,
    /// Its program.
    pub runtime_path: PathBuf,
    /// How kills for memory are seen.
    pub means: Means,
    /// Who dies first of the runner and its children.
    pub rank: OomRank,
}

/// A running session.
pub struct Session {
    pub(super) tasks: TaskGroup,
    pub(super) outbox: Outbox,
    pub(super) console: Console,
    pub(super) queue: TaskQueue,
    /// Reaches the step that runs, or the bootstrap script.
    pub(super) current: Option<Control>,
    pub(super) worker: Option<Arc<Worker>>,
    /// sshd and ttyd, once they are prepared for.
    pub(super) intrinsic: Option<Intrinsic>,
    pub(super) events: mpsc::Receiver<Event>,
    inbound: Inbound,
    report: mpsc::Sender<Event>,
    launcher: Launcher,
    runtime: Arc<dyn Runtime>,
    input: UserInput,
    completions: Completions,
    inputs_wanted: mpsc::Receiver<InputWanted>,
    pub(super) services: Services,
    pub(super) oom: Oom,
    /// A request for input is about to be told; the next one waits.
    asking: bool,
    /// The step that ran has ended, and its end waits for the reports of kills before it.
    pub(super) ending: Option<Ending>,
    /// The step that runs is a `code` that was sent when none ran or waited.
    alone: bool,
    /// Counts steps, so that what belongs to an earlier one is known by its number.
    pub(super) step_number: u64,
    /// Seconds of `CLOCK_MONOTONIC`.
    started_at: f64,
}

/// A step that has ended and is not answered yet.
pub(super) struct Ending {
    pub(super) exit_code: i32,
    /// All kills before it are known.
    is_settled: bool,
    until: Instant,
}

impl Session {
    /// Binds the sockets and begins to prepare for steps.
    ///
    /// # Errors
    /// When a port is taken, or children cannot be watched.
    pub async fn start(settings: Settings, console: Console, outbox: Outbox, queue: Queue) -> Result<Self, Critical> {
        let started_at = monotonic_seconds();
        let tasks = TaskGroup::new();
        let inbound = transport::listen_pull(settings.ports.replin, &tasks).await?;
        transport::listen_push(settings.ports.replout, queue, &tasks).await?;
        let oom = Oom::start(settings.means, settings.paths.logs(), outbox.clone(), &tasks);
        let setup = |source| Critical::Setup { what: "the reaping of children", source };
        let launcher = Launcher {
            reaper: Reaper::start(&tasks, oom.witness(), settings.rank).map_err(setup)?,
            console: console.clone(),
            sink: Arc::new(Output::new(outbox.clone())),
            logs: Some(settings.paths.logs()),
            tasks: tasks.clone(),
            reasons: Arc::new(EndReasons { causes: oom.causes() }),
        };
        let (tell_wanted, inputs_wanted) = mpsc::channel(1);
        let socket = settings.paths.input_socket();
        let input = user_input::serve(&socket, settings.kind.user_input, tell_wanted, &tasks);
        let (report, events) = mpsc::channel(QUEUED_EVENTS);
        let (runtime_ready, final_env) = oneshot::channel();
        let services = Services::start(Setting {
            definitions: settings.paths.service_definitions(),
            language: settings.kind.name,
            runtime_path: settings.runtime_path.clone(),
            work: settings.paths.work(),
            own_libraries: settings.paths.volume_libraries().to_owned(),
            launcher: launcher.clone(),
            env: settings.env.clone(),
            final_env,
        });
        let runtime = (settings.kind.make)(settings.runtime_path);
        let line = if runtime.has_terminal() { terminal::open(&settings.ports, &tasks).await } else { None };
        let mut session = Self {
            tasks,
            outbox,
            console,
            queue: TaskQueue::default(),
            current: None,
            worker: None,
            intrinsic: None,
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
            asking: false,
            ending: None,
            alone: false,
            step_number: 0,
            started_at,
        };
        session.prepare(settings.paths, settings.ports, settings.env, line, runtime_ready);
        Ok(session)
    }

    fn prepare(
        &mut self,
        paths: Paths,
        ports: Ports,
        env: ChildEnv,
        line: Option<Arc<dyn Line>>,
        runtime_ready: oneshot::Sender<ChildEnv>,
    ) {
        let control = Control::new();
        self.current = Some(control.clone());
        let preparation = Preparation {
            runtime: Arc::clone(&self.runtime),
            launcher: self.launcher.clone(),
            paths,
            ports,
            input: self.input.source(),
            line,
            control,
            runtime_ready,
        };
        let report = self.report.clone();
        self.tasks.spawn("preparation", async move {
            let prepared = preparation.run(env).await;
            let _ = report.send(Event::Ready(Box::new(prepared))).await;
        });
    }

    /// Serves the agent until a signal comes, then stops.
    ///
    /// # Errors
    /// When a task of ours has panicked.
    pub async fn run(mut self, signals: &mut Signals) -> Result<Exit, Critical> {
        loop {
            let event = self.next_event(signals).await;
            match self.handle(event) {
                Response::Continue => {}
                Response::Stop => return Ok(stop::stop(self, signals).await),
                Response::Fail(task) => {
                    stop::stop(self, signals).await;
                    return Err(Critical::TaskPanicked(task));
                }
            }
        }
    }

    async fn next_event(&mut self, signals: &mut Signals) -> Event {
        let message = async {
            self.outbox.room_for_answers().await;
            self.inbound.recv().await
        };
        let wanted = async {
            self.outbox.room_for_answers().await;
            self.inputs_wanted.recv().await
        };
        let about_services = async {
            self.outbox.room_for_answers().await;
            self.services.next().await
        };
        let has_kept = self.oom.has_kept() && !self.queue.is_idle();
        let room_for_reports = async {
            if has_kept {
                self.outbox.room_for_answers().await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        let overdue_at = self.ending.as_ref().map(|ending| ending.until);
        tokio::select! {
            biased;
            () = signals.next() => Event::Signal,
            task = self.tasks.failed() => Event::TaskPanicked(task),
            Some(event) = self.events.recv() => event,
            () = room_for_reports => Event::RoomForReports,
            told = self.oom.next() => Event::Oom(told),
            told = about_services => Event::Service(told),
            () = reached(overdue_at) => Event::Overdue,
            suggestions = self.completions.next() => Event::Completed(suggestions),
            Some(wanted) = wanted, if !self.asking => Event::InputWanted(wanted),
            Some(frames) = message => Event::Message(frames),
        }
    }

    fn handle(&mut self, event: Event) -> Response {
        match event {
            Event::Signal => return Response::Stop,
            Event::TaskPanicked(task) => return Response::Fail(task),
            Event::Oom(told) => {
                let answered = self.oom.handle(told, !self.queue.is_idle());
                if let Some(ending) = self.ending.as_mut().filter(|_| answered == Some(self.step_number)) {
                    ending.is_settled = true;
                }
                self.end_settled_step();
            }
            Event::RoomForReports => {
                self.oom.send_kept();
                self.end_settled_step();
            }
            Event::Overdue => {
                tracing::warn!("a report of an OOM kill in this step may come later");
                self.end_step();
            }
            Event::Service(told) => self.outbox.answer(services::reply(told)),
            Event::Message(frames) => match Op::decode(&frames) {
                Ok(op) => self.handle_op(op),
                Err(problem) => tracing::warn!("a message of the agent is skipped: {}", chain(&problem)),
            },
            Event::Ready(prepared) => {
                tracing::debug!("ready for steps");
                self.current = None;
                self.prepared(*prepared);
                self.advance();
            }
            Event::Completed(suggestions) => self.outbox.answer(Reply::Completion(suggestions)),
            Event::StepDone { exit_code } => self.settle(exit_code),
            Event::InputWanted(wanted) => self.settle_then_ask(wanted),
            Event::Settled { step_number, wanted } => {
                self.asking = false;
                // A program that has ended since waits for nothing.
                if step_number == self.step_number && self.ending.is_none() {
                    let options = wanted.is_password.map(|is_password| InputOptions { is_password });
                    self.outbox.answer(Reply::WaitingInput(options));
                }
            }
        }
        Response::Continue
    }

    fn handle_op(&mut self, op: Op) {
        match op {
            Op::Step(step) => self.enqueue(step),
            Op::Input(text) => self.input.answer(text),
            Op::Interrupt => match (&self.current, self.engine()) {
                (Some(control), _) => control.interrupt(),
                (None, Some(engine)) => engine.interrupt(),
                (None, None) => tracing::debug!("nothing runs that could be interrupted"),
            },
            Op::Status => self.outbox.answer(Reply::Status { started_at: self.started_at }),
            Op::Complete(request) => self.completions.ask(self.engine().cloned(), request),
            Op::Event(event) if event.kind == "oom" => self.oom.told_by_agent(),
            Op::Event(event) => tracing::info!("Agent-notified event: {} {}", event.kind, event.data),
            Op::StartService(request) => {
                let order = intrinsic::order(&mut self.intrinsic, &request);
                self.order(order.unwrap_or_else(|| services::start(request)));
            }
            Op::StartModelService(request) => self.order(services::start_model(request)),
            Op::ShutdownService(name) => {
                if !self.intrinsic.as_mut().is_some_and(|intrinsic| intrinsic.shut_down(&name)) {
                    self.order(Order::Stop(name));
                }
            }
            Op::GetApps(name) => self.order(Order::Apps(name)),
        }
    }

    fn order(&self, order: Order) {
        if let Err(busy) = self.services.order(order) {
            tracing::warn!("a request is refused: {busy}");
            let Busy(order) = &busy;
            if let Some(reply) = services::refusal(order, &busy.to_string()) {
                self.outbox.answer(reply);
            }
        }
    }

    /// Takes over what the preparation has made.
    pub(super) fn prepared(&mut self, prepared: Prepared) {
        let Prepared { env, engine, intrinsic } = prepared;
        self.intrinsic = Some(intrinsic);
        let worker = Worker { runtime: Arc::clone(&self.runtime), launcher: self.launcher.clone(), env, engine };
        self.worker = Some(Arc::new(worker));
    }

    /// What runs `code`, if the language has such a thing.
    pub(super) fn engine(&self) -> Option<&Arc<dyn Engine>> {
        self.worker.as_ref()?.engine.as_ref()
    }

    fn enqueue(&mut self, step: Step) {
        let op = step.kind.op_name();
        if self.queue.is_idle() {
            self.alone = step.kind == StepKind::Code;
        }
        match self.queue.push(step) {
            Pushed::Queued => {}
            Pushed::Refused => tracing::error!("too many steps wait; this `{op}` will not be run"),
            Pushed::Dropped => tracing::error!("too many steps wait; this `{op}` is dropped without an answer"),
        }
        self.advance();
    }

    /// Starts the next step if none runs and the preparations are through.
    fn advance(&mut self) {
        let Some(worker) = &self.worker else { return };
        while let Some(work) = self.queue.next() {
            match work {
                Work::Answer { kind, exit_code } => {
                    self.oom.send_kept();
                    self.outbox.answer(Reply::Finished { kind, exit_code });
                }
                Work::Run(step) => {
                    self.oom.send_kept();
                    let control = Control::new();
                    self.current = Some(control.clone());
                    let (worker, report) = (Arc::clone(worker), self.report.clone());
                    self.tasks.spawn("step", async move {
                        let exit_code = worker.run(&step, &control).await;
                        let _ = report.send(Event::StepDone { exit_code }).await;
                    });
                }
            }
        }
    }

    pub(super) fn step_done(&mut self, exit_code: i32) {
        self.current = None;
        self.step_number += 1;
        let alone = std::mem::take(&mut self.alone);
        match self.queue.finished(exit_code).map(|kind| Reply::Finished { kind, exit_code }) {
            Some(finished) if alone => self.outbox.answer_alone(finished),
            Some(finished) => self.outbox.answer(finished),
            None => {}
        }
    }

    /// A step has ended: what is known of kills before that goes first.
    fn settle(&mut self, exit_code: i32) {
        self.ending = Some(Ending { exit_code, is_settled: false, until: Instant::now() + SETTLE_PATIENCE });
        if !self.oom.settle(self.step_number) {
            self.end_step();
        }
    }

    /// The same, if all that is to go before its end has gone.
    fn end_settled_step(&mut self) {
        if self.ending.as_ref().is_some_and(|ending| ending.is_settled) && !self.oom.has_kept() {
            self.end_step();
        }
    }

    /// Answers for the step that has ended, and goes on with the next.
    fn end_step(&mut self) {
        if let Some(Ending { exit_code, .. }) = self.ending.take() {
            self.step_done(exit_code);
            self.advance();
        }
    }

    /// Lets what the program has written, its prompt, go first.
    fn settle_then_ask(&mut self, wanted: InputWanted) {
        self.asking = true;
        let (control, report, step_number) = (self.current.clone(), self.report.clone(), self.step_number);
        self.tasks.spawn("request for input", async move {
            if let Some(control) = control {
                control.settle().await;
            }
            let _ = report.send(Event::Settled { step_number, wanted }).await;
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
