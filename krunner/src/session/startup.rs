//! Starts a session: binds the sockets, connects its parts, and begins the preparation.

use std::path::PathBuf;
use std::sync::Arc;

use nix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::attribution::SessionAttribution;
use super::completion::Completions;
use super::dispatch::{Agent, Prompts, Session, StepExecution};
use super::end_log::SessionEndLog;
use super::event::SessionEvent;
use super::exit_reason::MonitorExplainer;
use super::oom::OomReporter;
use super::output::Output;
use super::preparation::Preparation;
use super::readiness::Readiness;
use super::services::SessionServices;
use super::steps::Steps;
use super::terminal;
use crate::config::{ChildEnv, MemorySettings, Paths, Ports};
use crate::error::FatalError;
use crate::monitor::MonitorSetup;
use crate::process::{Console, Control, Launcher, OomScorePolicy, Reaper};
use crate::runtime::Language;
use crate::service::{Services, ServicesConfig, StartPublisher};
use crate::tasks::TaskGroup;
use crate::transport::{self, ReplyReceiver, ReplySender};
use crate::user_input;

/// Capacity of the event channel; tasks wait while it is full.
const QUEUED_EVENTS: usize = 16;

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
        oom.use_settings(config.memory, config.env.clone(), &launcher);
        let (wanted_tx, wanted) = mpsc::channel(1);
        let reaper = launcher.reaper.clone();
        let is_own_child = Box::new(move |pid| reaper.has_spawned(pid));
        let socket = config.paths.input_socket();
        let input = user_input::serve(&socket, config.kind.user_input, wanted_tx, is_own_child, &tasks);
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
        let control = Control::new();
        let preparation = Preparation {
            runtime: Arc::clone(&runtime),
            launcher: launcher.clone(),
            paths: config.paths,
            ports: config.ports,
            input: input.source(),
            terminal_transport,
            control: control.clone(),
            progress,
        };
        let (env, prepared_to) = (config.env, report.clone());
        tasks.spawn("preparation", async move {
            let prepared = preparation.run(env).await;
            let _ = prepared_to.send(SessionEvent::Ready(Box::new(prepared))).await;
        });
        Ok(Self {
            agent: Agent { inbound, replies, readiness, started_at },
            steps: Steps::new(control),
            execution: StepExecution { runtime, launcher, worker: None, completions: Completions::default() },
            prompts: Prompts { input, wanted, is_prompting: false },
            services: SessionServices::new(services, startup),
            attribution: SessionAttribution { oom, end_log },
            events,
            report,
            tasks,
            console,
        })
    }
}

fn monotonic_seconds() -> f64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0.0, |now| std::time::Duration::from(now).as_secs_f64())
}
