//! The owner of all services: takes orders, answers each in its turn.
//!
//! ```text
//! session ──Order──▶ Desk ── starts a Job for each service, looks at it, never waits for it
//!                     │ what the answer depends on
//!                     ▼
//!                  tellers: one for each kind of answer ──Event──▶ session
//! ```
//!
//! An answer carries no name, and whoever waits takes the first that comes; so answers of one kind are given in the
//! order of the orders. Each has its deadline from the moment of its order, so a slow service cannot make a later
//! answer late, and the services themselves start side by side.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::catalogue::Catalogue;
use super::definition::Definition;
use super::fallback::fallback;
use super::job::{Handle, Job, Progress};
use super::launch::Chosen;
use super::model::Model;
use super::order::{AppInfo, Event, ModelOrder, Order, Outcome, ServiceOrder};
use super::template::{Value, Variables};
use super::watcher::Watcher;
use crate::config::ChildEnv;
use crate::error::chain;
use crate::process::Launcher;
use crate::tasks::{TaskGroup, blocking};

/// From an order to its answer: agents wait for ten seconds, and are promised nine.
const ANSWER_DEADLINE: Duration = Duration::from_millis(8500);

/// How long orders wait at the session's start for definitions and for the runtime's environment.
const READY_DEADLINE: Duration = Duration::from_secs(5);

/// Orders that wait; the desk takes them at once when it is ready.
const QUEUED_ORDERS: usize = 32;

/// Answers of one kind that wait for their turn. An agent keeps as many.
const QUEUED_ANSWERS: usize = 128;

/// Services at the same time, whatever their names.
const MAX_SERVICES: usize = 64;

/// A model service that ends within this time of its start was not started.
const MODEL_GRACE: Duration = Duration::from_millis(300);

/// What services are started with.
pub struct Setting {
    /// Folder of definitions.
    pub definitions: PathBuf,
    /// The runtime's name.
    pub language: &'static str,
    /// The runtime's program.
    pub runtime_path: PathBuf,
    /// The user's home.
    pub work: PathBuf,
    /// Folder of libraries that are the runner's own.
    pub own_libraries: PathBuf,
    /// Starts programs.
    pub launcher: Launcher,
    /// The environment as far as it is known at the start.
    pub env: ChildEnv,
    /// The same when the runtime has completed it.
    pub final_env: oneshot::Receiver<ChildEnv>,
}

/// The session's end.
pub struct Services {
    orders: mpsc::Sender<Order>,
    events: mpsc::Receiver<Event>,
    stopping: CancellationToken,
    stopped: CancellationToken,
}

/// Too many orders wait; this one is not taken.
#[derive(Debug, thiserror::Error)]
#[error("more than {QUEUED_ORDERS} requests for services wait")]
pub struct Busy(pub Box<Order>);

impl Services {
    /// Starts the desk; definitions are read beside.
    #[must_use]
    pub fn start(setting: Setting) -> Self {
        let (orders, taken) = mpsc::channel(QUEUED_ORDERS);
        let (tell, events) = mpsc::channel(QUEUED_ANSWERS);
        let (stopping, stopped) = (CancellationToken::new(), CancellationToken::new());
        let tasks = setting.launcher.tasks.clone();
        let desk = Desk {
            services_told: Teller::new(&tell, &tasks),
            models_told: Teller::new(&tell, &tasks),
            apps_told: Teller::new(&tell, &tasks),
            events: tell,
            setting,
            catalogue: Catalogue::default(),
            jobs: HashMap::new(),
        };
        tasks.spawn("services", desk.run(taken, stopping.clone(), stopped.clone()));
        Self { orders, events, stopping, stopped }
    }

    /// Takes an order.
    ///
    /// # Errors
    /// When too many wait.
    pub fn order(&self, order: Order) -> Result<(), Busy> {
        self.orders.try_send(order).map_err(|refused| Busy(refused.into_inner().into()))
    }

    /// The next that is told; never ends.
    pub async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// Ends all services and takes no more orders; `false` when some are left at the deadline.
    pub fn stop(&self, deadline: Duration) -> impl Future<Output = bool> + use<> {
        self.stopping.cancel();
        let stopped = self.stopped.clone();
        async move { tokio::time::timeout(deadline, stopped.cancelled()).await.is_ok() }
    }
}

type Answer = Pin<Box<dyn Future<Output = Event> + Send>>;

/// Gives answers of one kind in their order.
struct Teller(mpsc::Sender<Answer>);

impl Teller {
    fn new(events: &mpsc::Sender<Event>, tasks: &TaskGroup) -> Self {
        let (queue, mut answers) = mpsc::channel::<Answer>(QUEUED_ANSWERS);
        let events = events.clone();
        tasks.spawn("answers about services", async move {
            while let Some(answer) = answers.recv().await {
                if events.send(answer.await).await.is_err() {
                    return;
                }
            }
        });
        Self(queue)
    }

    async fn tell(&self, answer: impl Future<Output = Event> + Send + 'static) {
        // The teller ends with the session only.
        let _ = self.0.send(Box::pin(answer)).await;
    }
}

struct Desk {
    setting: Setting,
    catalogue: Catalogue,
    jobs: HashMap<String, Handle>,
    services_told: Teller,
    models_told: Teller,
    apps_told: Teller,
    events: mpsc::Sender<Event>,
}

/// What an order for a service comes to.
enum Decision {
    Answer(Outcome),
    Wait(Handle),
}

impl Desk {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>, stopping: CancellationToken, stopped: CancellationToken) {
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
        for job in self.jobs.values_mut() {
            job.over().await;
        }
        stopped.cancel();
    }

    /// Waits for definitions and environment, within bounds: a folder may be on a mount that hangs, and a runtime may
    /// take its time.
    async fn get_ready(&mut self) {
        let deadline = Instant::now() + READY_DEADLINE;
        let folder = self.setting.definitions.clone();
        tokio::select! {
            catalogue = blocking(move || Catalogue::load(&folder)) => self.catalogue = catalogue,
            () = sleep_until(deadline) => {
                tracing::error!("{} cannot be read; no service is defined", self.setting.definitions.display());
            }
        }
        for problem in self.catalogue.problems.values() {
            tracing::warn!("a service definition is left out: {problem}");
        }
        tokio::select! {
            env = &mut self.setting.final_env => if let Ok(env) = env { self.setting.env = env },
            () = sleep_until(deadline) => {
                tracing::warn!("the runtime is not ready; services start without its part of the environment");
            }
        }
    }

    async fn take(&mut self, order: Order) {
        self.jobs.retain(|_, job| !job.now().is_over());
        match order {
            Order::Service(order) => self.serve(order).await,
            Order::Kept(answer) => self.services_told.tell(async { Event::Service(answer.0.await) }).await,
            Order::Model(order) => self.serve_model(order).await,
            Order::Stop(name) => match self.jobs.get(&name) {
                Some(job) => job.stop(),
                None => tracing::warn!("the service {name} does not run"),
            },
            Order::Apps(name) => {
                let apps = self.apps(name.as_deref());
                self.apps_told.tell(async { Event::Apps(apps) }).await;
            }
        }
    }

    async fn serve(&mut self, order: ServiceOrder) {
        let (deadline, name) = (order.at + ANSWER_DEADLINE, order.name.clone());
        let decision = self.decide(order).unwrap_or_else(|problem| {
            tracing::warn!("the service {name} is not started: {problem}");
            Decision::Answer(Outcome::Failed(problem))
        });
        let answer = async move {
            Event::Service(match decision {
                Decision::Answer(outcome) => outcome,
                Decision::Wait(job) => outcome_of(job, deadline).await,
            })
        };
        self.services_told.tell(answer).await;
    }

    /// In the order that agents know.
    fn decide(&mut self, order: ServiceOrder) -> Result<Decision, String> {
        if order.protocol == "preopen" {
            return Ok(Decision::Answer(Outcome::Started));
        }
        if let Some(job) = self.running(&order.name) {
            return Ok(match job.now() {
                Progress::Open => Decision::Answer(Outcome::Running),
                _ => Decision::Wait(job.clone()),
            });
        }
        if order.protocol == "pty" {
            return Err("not implemented yet".to_owned());
        }
        let definition = self.definition(&order.name)?;
        if definition.noop {
            return Ok(Decision::Answer(Outcome::Started));
        }
        let chosen =
            Chosen::read(&order.name, &definition, &order.options, &self.setting.env).map_err(|error| chain(&error))?;
        let Some(first) = order.ports.first().copied() else {
            return Err("the request names no `ports`".to_owned());
        };
        let port = order.port.unwrap_or(first);
        if port == 0 {
            return Err("the port is 0, on which nothing can listen".to_owned());
        }
        self.begin(order.name, definition, chosen, &order.ports, port, None).map(Decision::Wait)
    }

    fn definition(&self, name: &str) -> Result<Definition, String> {
        if let Some(definition) = self.catalogue.services.get(name) {
            return Ok(definition.clone());
        }
        if let Some(definition) = fallback(self.setting.language, name, &self.setting.work) {
            return Ok(definition);
        }
        let problem = self.catalogue.problems.get(name);
        Err(problem.map_or("unsupported service".to_owned(), |problem| format!("unsupported service: {problem}")))
    }

    /// The job of this name, unless it is on its way out.
    fn running(&self, name: &str) -> Option<&Handle> {
        self.jobs.get(name).filter(|job| !job.is_stopping())
    }

    fn begin(
        &mut self,
        name: String,
        definition: Definition,
        chosen: Chosen,
        ports: &[u16],
        port: u16,
        directory: Option<PathBuf>,
    ) -> Result<Handle, String> {
        let predecessor = self.jobs.remove(&name);
        if self.jobs.len() >= MAX_SERVICES {
            return Err(format!("{MAX_SERVICES} services run already"));
        }
        let runtime_path = self.setting.runtime_path.display().to_string();
        let variables = Variables::from([
            ("ports".to_owned(), Value::Numbers(ports.iter().copied().map(u64::from).collect())),
            ("runtime_path".to_owned(), Value::Text(runtime_path)),
        ]);
        let job = Job {
            name: name.clone(),
            definition,
            chosen,
            variables,
            directory,
            port,
            env: self.setting.env.clone(),
            own_libraries: self.setting.own_libraries.clone(),
            launcher: self.setting.launcher.clone(),
            predecessor,
        };
        let handle = job.start();
        self.jobs.insert(name, handle.clone());
        Ok(handle)
    }

    async fn serve_model(&mut self, order: ModelOrder) {
        let deadline = order.at + ANSWER_DEADLINE;
        let answer = match self.decide_on_model(&order) {
            Err(problem) => {
                tracing::warn!("the model service {} is not started: {problem}", order.name);
                ready(Outcome::Failed(problem))
            }
            Ok(None) => ready(Outcome::Running),
            Ok(Some((model, job))) => {
                let (tell, told) = oneshot::channel();
                let watcher = Watcher { name: model.name, port: model.port, job, events: self.events.clone() };
                let verdict = watcher.run(model.check, deadline, MODEL_GRACE, tell);
                self.setting.launcher.tasks.spawn("model service", verdict);
                told
            }
        };
        // A watcher answers, or ends with all tasks.
        let told = async move {
            match answer.await {
                Ok(outcome) => Event::Model(outcome),
                Err(_) => std::future::pending().await,
            }
        };
        self.models_told.tell(told).await;
    }

    /// `None` for one that runs already.
    fn decide_on_model(&mut self, order: &ModelOrder) -> Result<Option<(Model, Handle)>, String> {
        let model = Model::read(&order.name, order.model_path.as_deref(), &order.service)?;
        let name = model.service_name();
        if self.running(&name).is_some() {
            return Ok(None);
        }
        let (definition, directory) = (model.definition.clone(), model.directory.clone());
        let job = self.begin(name, definition, Chosen::default(), &[model.port], model.port, directory)?;
        Ok(Some((model, job)))
    }

    fn apps(&self, name: Option<&str>) -> Vec<AppInfo> {
        let chosen = self.catalogue.services.iter().filter(|(known, _)| name.is_none_or(|name| name == *known));
        chosen.map(|(name, definition)| AppInfo::of(name, definition)).collect()
    }
}

fn ready(outcome: Outcome) -> oneshot::Receiver<Outcome> {
    let (tell, told) = oneshot::channel();
    // The receiver is right here.
    let _ = tell.send(outcome);
    told
}

/// What an order is answered when its service has started, has failed to, or the deadline is here.
async fn outcome_of(mut job: Handle, deadline: Instant) -> Outcome {
    match job.reach(deadline, |progress| *progress == Progress::Open || progress.is_over()).await {
        Progress::Open => Outcome::Started,
        Progress::Failed(problem) => Outcome::Failed(problem),
        Progress::Ended(ended) => Outcome::Failed(format!("the process did not start properly: {ended}")),
        Progress::Preparing(what) => Outcome::Failed(format!("still starting: waiting for {what}")),
        Progress::Starting => Outcome::Failed(format!("still starting: port {} is not open yet", job.port)),
    }
}
