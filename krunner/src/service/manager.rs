//! The owner of all services: takes commands and answers each in order.
//!
//! ```text
//! session ──ServiceCommand──▶ ServiceManager ── starts a ServiceJob for each service, never waits for it
//!                     │ a future of the response
//!                     ▼
//!                  response queues, one for each kind ──ServiceEvent──▶ session
//! ```
//!
//! Services start in parallel; see `response_queue` for the order of responses and their deadlines.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::catalogue::Catalogue;
use super::command::{ServiceCommand, ServiceEvent, StartModel, StartService};
use super::definition::Definition;
use super::fallback::fallback;
use super::job::{BEING_STOPPED, ServiceEnd, ServiceHandle, ServiceJob, ServiceOrigin};
use super::launch::UserOptions;
use super::model::ModelService;
use super::response_queue::{Deadline, QUEUED_RESPONSES, ResponseQueue};
use super::response_timeout::{DEFAULT_RESPONSE_TIMEOUT, response_timeout};
use super::start_error::RequestError;
use super::startup::StartProgress;
use super::template::{Value, Variables};
use super::watcher::ModelWatcher;
use crate::config::{AgentVersion, ChildEnv, Paths};
use crate::error::chain;
use crate::process::Launcher;
use crate::supervisor::{JobState, StartStage};
use crate::tasks::blocking;
use crate::wire::{AppEntry, ModelServiceRequest, ServiceOutcome, ServiceRequest};

/// How long commands wait at the session's start for the definitions and the runtime's environment.
const READY_DEADLINE: Duration = Duration::from_secs(5);

/// Queued commands; the manager takes them at once when it is ready.
const QUEUED_ORDERS: usize = 32;

/// Limit of services at the same time.
const MAX_SERVICES: usize = 64;

/// The configuration of all services.
pub(crate) struct ServicesConfig {
    /// Paths of the definitions and the agent's version.
    pub paths: Paths,
    /// The language's name, which selects fallback definitions.
    pub language: &'static str,
    /// The runtime's program, `{runtime_path}` in templates.
    pub runtime_path: PathBuf,
    /// Starts the processes of services and actions.
    pub launcher: Launcher,
    /// The environment as far as it is known before the runtime is initialized.
    pub env: ChildEnv,
    /// Progress of the session's start, which services wait for.
    pub startup: watch::Receiver<StartProgress>,
}

/// The session's handle on its services.
pub(crate) struct Services {
    orders: mpsc::Sender<ServiceCommand>,
    events: mpsc::Receiver<ServiceEvent>,
    stopping: CancellationToken,
    stopped: CancellationToken,
}

/// Too many commands are queued; this one was not accepted.
#[derive(Debug, thiserror::Error)]
#[error("too many service requests are waiting (limit {QUEUED_ORDERS})")]
pub(crate) struct ServicesBusy(pub Box<ServiceCommand>);

impl Services {
    /// Starts the manager, which reads the definitions in the background.
    #[must_use]
    pub(crate) fn start(config: ServicesConfig) -> Self {
        let (orders, taken) = mpsc::channel(QUEUED_ORDERS);
        let (tell, events) = mpsc::channel(QUEUED_RESPONSES);
        let (stopping, stopped) = (CancellationToken::new(), CancellationToken::new());
        let tasks = config.launcher.tasks.clone();
        let manager = ServiceManager {
            start_responses: ResponseQueue::new(&tell, &tasks),
            model_responses: ResponseQueue::new(&tell, &tasks),
            app_responses: ResponseQueue::new(&tell, &tasks),
            events: tell,
            config,
            agent: None,
            catalogue: Catalogue::default(),
            jobs: HashMap::new(),
        };
        tasks.spawn("services", manager.run(taken, stopping.clone(), stopped.clone()));
        Self { orders, events, stopping, stopped }
    }

    /// Queues a command.
    ///
    /// # Errors
    /// When too many are queued.
    pub(crate) fn order(&self, order: ServiceCommand) -> Result<(), ServicesBusy> {
        self.orders.try_send(order).map_err(|refused| ServicesBusy(refused.into_inner().into()))
    }

    /// The next event; pending forever if the manager is gone.
    pub(crate) async fn next(&mut self) -> ServiceEvent {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// Stops all services and accepts no more commands; `false` if some still run at the deadline.
    pub(crate) fn stop(&self, deadline: Duration) -> impl Future<Output = bool> + use<> {
        self.stopping.cancel();
        let stopped = self.stopped.clone();
        async move { tokio::time::timeout(deadline, stopped.cancelled()).await.is_ok() }
    }
}

struct ServiceManager {
    config: ServicesConfig,
    agent: Option<AgentVersion>,
    catalogue: Catalogue,
    jobs: HashMap<String, ServiceHandle>,
    start_responses: ResponseQueue,
    model_responses: ResponseQueue,
    app_responses: ResponseQueue,
    events: mpsc::Sender<ServiceEvent>,
}

/// The response to a start request, or the job that it waits for.
enum Decision {
    Answer(ServiceOutcome),
    Wait(ServiceHandle),
}

impl ServiceManager {
    async fn run(
        mut self,
        mut orders: mpsc::Receiver<ServiceCommand>,
        stopping: CancellationToken,
        stopped: CancellationToken,
    ) {
        let serving = async {
            self.get_ready().await;
            while let Some(order) = orders.recv().await {
                self.take(order).await;
            }
        };
        stopping.run_until_cancelled(serving).await;
        for job in self.jobs.values() {
            job.stop();
        }
        for job in self.jobs.values() {
            job.stopped().await;
        }
        stopped.cancel();
    }

    /// Waits for definitions and environment, with a deadline: the directory may be on a mount that hangs, and the runtime may be
    /// slow to start.
    async fn get_ready(&mut self) {
        let deadline = Instant::now() + READY_DEADLINE;
        let paths = self.config.paths.clone();
        tokio::select! {
            (catalogue, agent) = blocking(move || {
                (Catalogue::load(&paths.service_definitions()), AgentVersion::find(&paths))
            }) => {
                self.catalogue = catalogue;
                self.agent = agent;
            }
            () = sleep_until(deadline) => {
                let folder = self.config.paths.service_definitions();
                tracing::error!("cannot read {} in time; no services are available", folder.display());
            }
        }
        for problem in self.catalogue.problems.values() {
            tracing::warn!("ignoring a service definition: {problem}");
        }
        let has_env = self.config.startup.wait_for(|progress| progress.env.is_some());
        // A service that is started earlier also waits for the environment; only the check of its variables does not.
        if let Ok(Ok(progress)) = timeout_at(deadline, has_env).await
            && let Some(env) = &progress.env
        {
            self.config.env = (**env).clone();
        }
    }

    async fn take(&mut self, order: ServiceCommand) {
        self.jobs.retain(|_, job| !job.state().is_stopped());
        match order {
            ServiceCommand::Start(order) => self.serve(order).await,
            ServiceCommand::Managed(answer) => {
                // It has its own deadline, which earlier responses must not delay.
                drop(self.start_responses.deadline(answer.deadline));
                self.start_responses.push(async { ServiceEvent::Service(answer.answer.await) }).await;
            }
            ServiceCommand::StartModel(order) => self.serve_model(order).await,
            ServiceCommand::Stop(name) => match self.jobs.get(&name) {
                Some(job) => job.stop(),
                None => tracing::warn!("service {name} is not running"),
            },
            ServiceCommand::ListApps(name) => {
                let apps = self.apps(name.as_deref());
                self.app_responses.push(async { ServiceEvent::Apps(apps) }).await;
            }
        }
    }

    async fn serve(&mut self, order: StartService) {
        let time = response_timeout(order.request.launch_timeout, self.agent);
        let (deadline, name) = (self.start_responses.deadline(order.at + time), order.request.name.clone());
        let decision = self.decide(order.request).unwrap_or_else(|error| {
            let problem = chain(&error);
            tracing::warn!("cannot start service {name}: {problem}");
            Decision::Answer(ServiceOutcome::failed(problem))
        });
        let answer = async move {
            ServiceEvent::Service(match decision {
                Decision::Answer(outcome) => outcome,
                Decision::Wait(job) => outcome_of(job, deadline).await,
            })
        };
        self.start_responses.push(answer).await;
    }

    /// Agents expect the checks in this order.
    fn decide(&mut self, request: ServiceRequest) -> Result<Decision, RequestError> {
        if request.protocol == "preopen" {
            return Ok(Decision::Answer(ServiceOutcome::Started));
        }
        if let Some(job) = self.running(&request.name) {
            return Ok(match job.state() {
                JobState::Ready(_) => Decision::Answer(ServiceOutcome::Running),
                _ => Decision::Wait(job.clone()),
            });
        }
        if request.protocol == "pty" {
            return Err(RequestError::PseudoTerminal);
        }
        let definition = self.definition(&request.name)?;
        if definition.noop {
            return Ok(Decision::Answer(ServiceOutcome::Started));
        }
        let options = UserOptions::read(&request.name, &definition, &request.options, &self.config.env)?;
        let Some(first) = request.ports.first().copied() else {
            return Err(RequestError::NoPorts);
        };
        let port = request.port.unwrap_or(first);
        if port == 0 {
            return Err(RequestError::PortZero);
        }
        self.begin(request.name, definition, options, &request.ports, port, None).map(Decision::Wait)
    }

    fn definition(&self, name: &str) -> Result<Definition, RequestError> {
        if let Some(definition) = self.catalogue.services.get(name) {
            return Ok(definition.clone());
        }
        if let Some(definition) = fallback(self.config.language, name, &self.config.paths.work()) {
            return Ok(definition);
        }
        let problem = self.catalogue.problems.get(name);
        Err(problem.map_or(RequestError::Unsupported, |problem| RequestError::BrokenDefinition(problem.clone())))
    }

    /// The job of this name, unless it is stopping.
    fn running(&self, name: &str) -> Option<&ServiceHandle> {
        self.jobs.get(name).filter(|job| !job.is_stopping())
    }

    fn begin(
        &mut self,
        name: String,
        definition: Definition,
        options: UserOptions,
        ports: &[u16],
        port: u16,
        directory: Option<PathBuf>,
    ) -> Result<ServiceHandle, RequestError> {
        // A predecessor that is still stopping is replaced. If the new one is refused, it stays, to be stopped with all.
        let others = self.jobs.len() - usize::from(self.jobs.contains_key(&name));
        if others >= MAX_SERVICES {
            return Err(RequestError::TooMany(MAX_SERVICES));
        }
        let predecessor = self.jobs.remove(&name);
        let runtime_path = self.config.runtime_path.display().to_string();
        let variables = Variables::from([
            ("ports".to_owned(), Value::Numbers(ports.iter().copied().map(u64::from).collect())),
            ("runtime_path".to_owned(), Value::Text(runtime_path)),
        ]);
        let port_is_shared = self.jobs.values().any(|job| job.port == port && !job.state().is_stopped());
        let job = ServiceJob {
            name: name.clone(),
            definition,
            options,
            variables,
            directory,
            port,
            port_is_shared,
            env: self.config.env.clone(),
            own_libraries: Paths::volume_libraries().to_owned(),
            startup: self.config.startup.clone(),
            launcher: self.config.launcher.clone(),
            predecessor,
        };
        let handle = job.start();
        self.jobs.insert(name, handle.clone());
        Ok(handle)
    }

    async fn serve_model(&mut self, order: StartModel) {
        let deadline = order.at + DEFAULT_RESPONSE_TIMEOUT;
        let (tell, told) = oneshot::channel();
        // A watcher responds, or is cancelled with all tasks.
        let answer = async move {
            match told.await {
                Ok(outcome) => ServiceEvent::Model(outcome),
                Err(_) => std::future::pending().await,
            }
        };
        let decision = self.decide_on_model(&order.request);
        let delivered = self.model_responses.push(answer).await;
        let outcome = match decision {
            Ok(Some((model, job))) => {
                let watcher =
                    ModelWatcher { name: model.name, port: model.port, job, events: self.events.clone(), delivered };
                self.config.launcher.tasks.spawn("model service", watcher.run(model.check, deadline, tell));
                return;
            }
            Ok(None) => ServiceOutcome::Running,
            Err(error) => {
                let problem = chain(&error);
                tracing::warn!("cannot start model service {}: {problem}", order.request.name);
                ServiceOutcome::failed(problem)
            }
        };
        // The receiver is in the queue.
        let _ = tell.send(outcome);
    }

    /// `None` if the service is already running.
    fn decide_on_model(
        &mut self,
        request: &ModelServiceRequest,
    ) -> Result<Option<(ModelService, ServiceHandle)>, RequestError> {
        let model = ModelService::read(&request.name, request.model_path.as_deref(), &request.service, self.agent)?;
        let name = model.service_name();
        if self.running(&name).is_some() {
            return Ok(None);
        }
        let (definition, directory) = (model.definition.clone(), model.directory.clone());
        let job = self.begin(name, definition, UserOptions::default(), &[model.port], model.port, directory)?;
        Ok(Some((model, job)))
    }

    fn apps(&self, name: Option<&str>) -> Vec<AppEntry> {
        let options = self.catalogue.services.iter().filter(|(known, _)| name.is_none_or(|name| name == *known));
        options.map(|(name, definition)| app(name, definition)).collect()
    }
}

/// A service as clients see it. Empty fields are omitted, as they expect.
fn app(name: &str, definition: &Definition) -> AppEntry {
    let list = |items: &[String]| (!items.is_empty()).then(|| items.into());
    AppEntry {
        name: name.to_owned(),
        url_template: Some(definition.url_template.clone()).filter(|template| !template.is_empty()),
        allowed_arguments: list(&definition.allowed_arguments),
        allowed_envs: list(&definition.allowed_envs),
    }
}

/// The response when the service started, failed, or the deadline passed.
async fn outcome_of(job: ServiceHandle, mut deadline: Deadline) -> ServiceOutcome {
    tokio::select! {
        () = job.ready_or_stopped() => {}
        () = deadline.wait() => {}
    }
    ServiceOutcome::failed(match job.state() {
        JobState::Ready(ServiceOrigin::Started) => return ServiceOutcome::Started,
        JobState::Ready(ServiceOrigin::AlreadyRunning) => return ServiceOutcome::Running,
        JobState::Starting(StartStage::Waiting(what)) => format!("still starting: waiting for {what}"),
        JobState::Starting(StartStage::Running) => format!("still starting: port {} is not open yet", job.port),
        JobState::Stopping => BEING_STOPPED.to_owned(),
        JobState::Stopped { end: ServiceEnd::Failed(problem), .. } => problem,
        JobState::Stopped { end: ServiceEnd::Exited(exit), .. } => {
            format!("the process did not start properly: {exit}")
        }
        JobState::Stopped { end: ServiceEnd::PortClosed, .. } => format!("port {} is no longer open", job.port),
    })
}
